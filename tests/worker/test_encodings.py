"""Text in any encoding: stated or not, and wherever its first byte is that is no UTF-8."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest
from ingestion_worker.outcome import WorkerError
from ingestion_worker.parsing.html import html_text, parse_html
from ingestion_worker.parsing.text import decode

WESTERN = {
    "French": "Le port se réveille lentement sous la brume. À l'aube, les pêcheurs déchargent leurs caisses pendant "
    "que la cloche de l'église sonne six heures. « C'était une année difficile », déclare le maire, « mais nous avons "
    "reçu des aides de l'État. » Les élèves de l'école voisine ont dû apprendre où se trouvent les bouées.",
    "Italian": "La città è così bella perché la luce del mattino arriva già dalle colline. Il museo apre alle nove e "
    "chiude più tardi il venerdì; l'entrata è gratuita per chi ha meno di diciotto anni. Non c'è però alcuna "
    "possibilità di prenotare, né di lasciare le valigie: la società che gestisce il servizio lo farà l'anno prossimo.",
    "Portuguese": "A estação de comboios fica a dois quilómetros da praia. Não há autocarros à noite, mas os táxis são "
    "baratos e as pessoas são muito simpáticas. Depois da construção da ponte, a região recebeu inúmeros visitantes, e "
    "as instituições locais começaram a oferecer informações em três línguas. O coração da aldeia é a praça.",
    "Spanish": "El año pasado el Ministerio de Educación publicó un informe sobre la situación de las bibliotecas. "
    "¿Qué pasará con los niños que viven en pueblos pequeños? Según el señor Núñez, todavía no está claro, pero habrá "
    "más dinero para la música, la pintura y los idiomas. También se abrirán diez centros más allá de la montaña.",
    "German": "Die Straße zum Schloss führt über eine alte Brücke, die im Frühjahr häufig überflutet wird. Für "
    "Fußgänger gibt es einen schmalen Weg, der jedoch nicht geräumt wird. Größere Gruppen müssen sich spätestens drei "
    "Tage vorher anmelden; die Führungen dauern ungefähr eine Stunde und kosten fünf Euro. Hunde dürfen nicht hinein.",
    "Swedish": "Färjan går från kajen varje timme, även på söndagar. På ön finns en liten affär där man kan köpa kött, "
    "smör och nybakat bröd. Vädret växlar snabbt i skärgården, så ta gärna med en tröja också när solen skiner. "
    "Båtarna får inte förtöjas vid bryggan efter klockan åtta på kvällen. Många återvänder år efter år.",
    "Finnish": "Satama herää hitaasti sumussa. Kalastajat purkavat laatikoitaan, kun kirkonkello lyö kuusi. Tämä oli "
    "vaikea vuosi, sanoo pormestari, mutta saimme apua valtiolta. Läheisen koulun oppilaat ovat tänä keväänä "
    "opetelleet, missä poijut sijaitsevat ja mihin niitä käytetään. Myös sää on ollut hyvä.",
    "English": "It would be naïve to think that the committee had read the whole report before the vote. Its chairman, "
    "who had worked in a café for most of his youth, asked for a résumé of the findings in plain language. The answer "
    "came two weeks later and ran to forty pages, most of them tables of figures that nobody could explain.",
    "English with quotes": "“It’s not what we planned,” she said – and the price, €40, didn’t help either…",
}
OTHERS = {
    "cp1250 Polish": "Port budzi się powoli we mgle. O świcie rybacy wyładowują skrzynki, gdy dzwon kościelny bije "
    "szóstą. To był trudny rok, mówi burmistrz, ale otrzymaliśmy pomoc od państwa. Uczniowie pobliskiej szkoły musieli "
    "się nauczyć, gdzie znajdują się boje i do czego służą.",
    "cp1250 Czech": "Přístav se pomalu probouzí v mlze. Za úsvitu rybáři vykládají bedny, zatímco zvon kostela odbíjí "
    "šestou. Byl to těžký rok, říká starosta, ale dostali jsme pomoc od státu. Žáci blízké školy se museli naučit, kde "
    "jsou bóje a k čemu slouží. Život na ostrově plyne klidně.",
    "cp1250 Hungarian": "A kikötő lassan ébred a ködben. Hajnalban a halászok kirakják a ládáikat, miközben a templom "
    "harangja hatot üt. Nehéz év volt, mondja a polgármester, de kaptunk segítséget az államtól. A közeli iskola "
    "tanulóinak meg kellett tanulniuk, hol vannak a bóják és mire valók. A hűvös őszi idő is közeledik.",
    "cp1254 Turkish": "Liman sisin içinde yavaşça uyanıyor. Şafakta balıkçılar kasalarını boşaltırken kilisenin çanı "
    "altıyı vuruyor. Zor bir yıldı, diyor belediye başkanı, ama devletten yardım aldık. Yakındaki okulun öğrencileri "
    "şamandıraların nerede olduğunu öğrenmek zorundaydı.",
    "cp1251 Russian": "Порт медленно просыпается в тумане. На рассвете рыбаки выгружают ящики, пока колокол церкви "
    "бьёт шесть. Это был трудный год, говорит мэр, но мы получили помощь от государства.",
    "cp1253 Greek": "Το λιμάνι ξυπνά αργά μέσα στην ομίχλη. Την αυγή οι ψαράδες ξεφορτώνουν τα κιβώτια, ενώ η καμπάνα "
    "της εκκλησίας χτυπά έξι. Ήταν μια δύσκολη χρονιά, λέει ο δήμαρχος, αλλά λάβαμε βοήθεια από το κράτος.",
    "shift_jis Japanese": "港は霧の中でゆっくりと目を覚ます。夜明けに漁師たちは箱を降ろし、教会の鐘が六時を告げる。"
    "難しい一年だったと町長は言うが、国から援助を受けた。",
    "gb18030 Chinese": "港口在雾中慢慢醒来。黎明时分，渔民们卸下箱子，教堂的钟敲响六点。镇长说，这是艰难的一年，"
    "但我们得到了国家的援助。附近学校的学生们必须学习浮标在哪里以及它们的用途。",
}
ENGLISH = "Replacing the pump takes about an hour. Switch off the mains and drain the boiler.\n" * 900


def read(data: bytes, charset: str | None = None) -> str:
    return decode(data=data, name="manual.txt", charset=charset)


@pytest.mark.parametrize("language", WESTERN)
def test_western_text_of_no_stated_charset_is_read_as_western(language: str) -> None:
    text = WESTERN[language]
    assert read(text.encode("cp1252")) == text
    assert read(f"{text}\n".encode("cp1252") * 900) == f"{text}\n" * 900


@pytest.mark.parametrize("case", OTHERS)
def test_text_of_another_code_page_is_not_taken_for_western(case: str) -> None:
    encoding, text = case.partition(" ")[0], OTHERS[case]
    for whole in (text, f"{text}\n" * 900, f"{ENGLISH}{text}\n{ENGLISH}"):
        assert read(whole.encode(encoding)) == whole


@pytest.mark.parametrize("text", ["Überall.", "It’s £45.", "½", "naïve café", "“Quoted”", *WESTERN.values()])
def test_a_late_byte_that_is_no_utf_8_decides(text: str) -> None:
    for whole in (f"{ENGLISH}{text}", f"{ENGLISH}{text}\n{ENGLISH}", f"{ENGLISH}{text} {ENGLISH}".replace("\n", " ")):
        assert read(whole.encode("cp1252")) == whole


@pytest.mark.parametrize("before", range(4))
@pytest.mark.parametrize("end", ["", "\n"])
@pytest.mark.parametrize("case", ["shift_jis Japanese", "gb18030 Chinese"])
def test_what_is_looked_at_may_end_inside_a_character(case: str, end: str, before: int) -> None:
    text = "a" * before + (OTHERS[case] + end) * 900
    assert read(text.encode(case.partition(" ")[0])) == text


def test_text_cut_inside_a_character_is_not_published_as_something_else() -> None:
    for case in ("shift_jis Japanese", "gb18030 Chinese"):
        data = OTHERS[case].removesuffix("。").encode(case.partition(" ")[0])
        with pytest.raises(WorkerError, match="DocumentUnreadable"):
            read(data[:-1])


@pytest.mark.parametrize(
    ("charset", "encoding", "text"),
    [
        ("ISO-8859-1", "cp1252", "It’s €5"),
        ("latin1", "latin-1", "one \x81 that Windows-1252 lacks: ä"),
        ("us-ascii", "cp1252", "“déjà vu”"),
        ("iso-8859-9", "cp1254", "“ış”"),
        ("gb2312", "gb18030", "镕𠀀"),
        ("Shift_JIS", "cp932", "①～"),
        ("ks_c_5601-1987", "cp949", "똠"),
        ("koi8-r", "koi8-r", "Порт"),
        ("iso-2022-jp", "iso-2022-jp", "港は霧の中"),
        ("hz-gb-2312", "hz", "港口在雾中"),
        ("utf-7", "utf-7", "Hääyö"),
        ("utf-16", "utf-16", "Hafen ö"),
        ("utf-16", "utf-16-le", "Hafen ö"),
        ("utf-16be", "utf-16-be", "Hafen ö"),
        ("utf-32le", "utf-32-le", "Hafen ö"),
    ],
)
def test_a_stated_charset_means_what_it_does_to_browsers(charset: str, encoding: str, text: str) -> None:
    assert read(text.encode(encoding), charset) == text


@pytest.mark.parametrize(
    "charset", ["zlib", "rot13", "idna", "undefined", "no-such", "a\x00b", "utf-16", "utf-7", "hz"]
)
def test_a_stated_charset_that_the_text_is_not_in_is_ignored(charset: str) -> None:
    text = WESTERN["German"] + "."[: len(WESTERN["German"]) % 2 == 0]
    assert read(text.encode("cp1252"), charset) == text


def test_a_byte_order_mark_beats_the_stated_charset() -> None:
    assert read(codecs.BOM_UTF16_BE + "Hafen ö".encode("utf-16-be"), "utf-16le") == "Hafen ö"


@pytest.mark.parametrize("charset", ["utf-16", "utf-16be", "utf-32"])
def test_text_without_a_zero_byte_is_not_of_two_bytes_for_a_character(charset: str) -> None:
    assert read(b"plain text", charset) == "plain text"


@pytest.mark.parametrize("charset", ["utf-16", "UTF-16LE", "utf-32"])
def test_a_page_of_single_bytes_is_not_in_the_utf_16_that_it_states(tmp_path: Path, charset: str) -> None:
    page = tmp_path / "page.html"
    pieces: list[str] = []
    for filler in ("", " "):
        page.write_bytes(f'<meta charset="{charset}"><p>Überall{filler}'.encode())
        parse_html(path=page, name="page.html", write=pieces.append)
    assert pieces == ["Überall\n", "Überall\n"]


@pytest.mark.parametrize("charset", [None, "utf-8", "iso-8859-1"])
@pytest.mark.parametrize("damage", [b"\xff", b"\xf0", b"\xc3", b"\xe2\x80"])
@pytest.mark.parametrize("text", ["Die Größe der Übung hängt davon ab.\n" * 20, *OTHERS.values()])
def test_utf_8_with_a_few_damaged_bytes_is_utf_8(text: str, damage: bytes, charset: str | None) -> None:
    half = len(text) // 2
    before, after = text[:half], text[half:]
    assert read(before.encode() + damage + b" " + after.encode(), charset) == f"{before}\ufffd {after}"


@pytest.mark.parametrize("charset", [None, "utf-8", "iso-8859-1", "utf-16"])
def test_damage_after_a_byte_order_mark_is_as_without_it(charset: str | None) -> None:
    text = "héllo wörld " * 50
    assert read(codecs.BOM_UTF8 + text.encode() + b"\xe9 x", charset) == f"{text}\ufffd x"
    assert read(codecs.BOM_UTF8 + text.encode() + b"\x00", charset) == f"{text}\x00"
    for cut in (b"plain\xc3", text.encode() + b"\xe2\x80"):
        with pytest.raises(WorkerError, match="DocumentTruncated"):
            read(codecs.BOM_UTF8 + cut, charset)


def test_a_page_with_half_a_letter_keeps_all_others(tmp_path: Path) -> None:
    lines = ["<p>Die Größe der Übung</p>"] * 200
    data = f"<html><head><meta charset='utf-8'></head><body>{''.join(lines)}</body></html>".encode()
    file = tmp_path / "page.html"
    file.write_bytes(data.replace("Ü".encode(), b"\xc3", 1))
    written: list[str] = []
    parse_html(path=file, name="page.html", write=written.append)
    assert "".join(written).count("Größe") == 200


DECLARED = {
    "windows-1250": OTHERS["cp1250 Polish"],
    "windows-1251": OTHERS["cp1251 Russian"],
    "windows-1253": OTHERS["cp1253 Greek"],
    "windows-1254": OTHERS["cp1254 Turkish"],
    "windows-1257": "Latvijas galvaspilsēta ir Rīga, kurā dzīvo ļoti daudz cilvēku. Šeit ķēniņš ēda žāvētas zivis.",
    "iso-8859-1": WESTERN["German"],
    "iso-8859-2": "Žluťoučký kůň příliš úpěl ďábelské ódy. Šťastný člověk žije v Praze a ráno jí housku.",
    "iso-8859-3": "Ĉu vi parolas Esperanton? Ŝi ĝojas kaj ĵus aĉetis ĥoron, ankaŭ la eĥoŝanĝoj ĉiuĵaŭde.",
    "iso-8859-4": "Lietuvos Respublika yra valstybė Šiaurės Europoje, žmonės čia gyvena nuo seno.",
    "iso-8859-6": "اللغة العربية هي لغة جميلة ويتحدث بها الملايين من الناس",
    "iso-8859-8": "שלום עולם, זוהי פסקה בעברית",
    "iso-8859-13": "Lietuvos sostinė yra Vilnius, žmonės čia gyvena nuo seno ir šnekasi lietuviškai, ąžuolų giriose.",
    "iso-8859-15": "Le prix est de 25 € par mois pour l'Œuvre complète; cœur, sœur, Žižek.",
    "macintosh": "Übergrößenträger äußern sich häufig fröhlich über süße Brötchen.",
    "koi8-u": "Київ є столицею України. Їжак їсть ґрунт.",
    "tis-620": "ภาษาไทยเป็นภาษาราชการของประเทศไทย และเป็นภาษาแม่ของชาวไทย",
    "shift_jis": OTHERS["shift_jis Japanese"],
    "euc-jp": OTHERS["shift_jis Japanese"],
    "iso-2022-jp": OTHERS["shift_jis Japanese"],
    "gb2312": OTHERS["gb18030 Chinese"],
    "big5": "繁體中文是使用於臺灣、香港與澳門的文字。這是一個比較長的段落。",
    "euc-kr": "이것은 조금 긴 한국어 문장입니다. 문자 인코딩 감지가 올바르게 되는지 확인합니다.",
}


@pytest.mark.parametrize(
    "declaration",
    ['<?xml version="1.0" encoding="{}"?>\n', "\n<?xml version='1.0' encoding = '{}' standalone='yes'?>"],
)
@pytest.mark.parametrize("charset", DECLARED)
def test_the_encoding_of_an_xhtml_page_may_stand_in_its_declaration_alone(charset: str, declaration: str) -> None:
    page = f"{declaration.format(charset)}<html><head><title/></head><body><p>{DECLARED[charset]}</p></body></html>"
    assert html_text(data=page.encode(charset), name="page.html") == f"{DECLARED[charset]}\n"


def test_a_declaration_counts_for_less_than_what_is_stated_or_cannot_be_so() -> None:
    page = '<?xml version="1.0" encoding="{}"?><meta charset="{}"/><p>Größe</p>'
    assert html_text(data=page.format("koi8-r", "latin1").encode("latin-1"), name="page.html") == "Größe\n"
    for charset in ("utf-16", "UTF-32", "utf-8"):
        page = f'<?xml version="1.0" encoding="{charset}"?><p>Größe</p>'
        assert html_text(data=page.encode(), name="page.html") == "Größe\n"
        assert html_text(data=page.encode("utf-16"), name="page.html") == "Größe\n"
