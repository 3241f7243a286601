{{- define "ingestion.fullname" -}}
{{- .Release.Name | replace "." "-" | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "ingestion.labels" -}}
app.kubernetes.io/name: ingestion-operator
app.kubernetes.io/instance: {{ .Release.Name | quote }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- /* A label has no `+` (a version with build metadata has), and at most 63 characters, the last a letter or digit. */}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | regexFind "^.{0,62}[A-Za-z0-9]" }}
{{- end -}}

{{- /* What stays when it is rendered no more: Argo CD, which prunes, does not read Helm's own annotation so. */ -}}
{{- define "ingestion.keep" -}}
helm.sh/resource-policy: keep
argocd.argoproj.io/sync-options: Prune=false,Delete=false
{{- end -}}

{{- /* Arguments: a list of the root context and the component's name. */ -}}
{{- define "ingestion.selector" -}}
app.kubernetes.io/name: ingestion-operator
app.kubernetes.io/instance: {{ (index . 0).Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- /* Arguments: a list of the root context and the component's name. */ -}}
{{- define "ingestion.image" -}}
{{- $image := index (index . 0).Values.images (index . 1) -}}
{{- with $image.digest -}}
{{- printf "%s@%s" $image.repository . -}}
{{- else -}}
{{- printf "%s:%s" $image.repository ($image.tag | default (index . 0).Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- /* Arguments: values with nodeSelector, tolerations, affinity and priorityClassName. */ -}}
{{- define "ingestion.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end -}}

{{- /* Labels or annotations: the chart's own, and others beside them. Arguments: a list of the former as YAML, and of the latter. */ -}}
{{- define "ingestion.beside" -}}
{{- merge (index . 0 | fromYaml) (index . 1 | default dict) | toYaml -}}
{{- end -}}

{{- /* The Secret with the keys of a tenant's bucket. Arguments: the tenant. */ -}}
{{- define "ingestion.storeSecret" -}}
{{- .existingSecret | default "ingestion-store" -}}
{{- end -}}

{{- /* The annotations of a pod of `helm test`. */ -}}
{{- define "ingestion.test" -}}
helm.sh/hook: test
helm.sh/hook-delete-policy: before-hook-creation,hook-succeeded
prometheus.io/scrape: "false"
{{- end -}}

{{- define "ingestion.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . | quote }}
{{- end }}
{{- end }}
{{- end -}}

{{- /* Replicas on nodes of their own, where there are enough. Arguments: a list of the root context and the component's name. */ -}}
{{- define "ingestion.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    matchLabelKeys: [pod-template-hash]
    labelSelector:
      matchLabels: {{- include "ingestion.selector" . | nindent 8 }}
{{- end -}}

{{- define "ingestion.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "ingestion.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end -}}

{{- /* An entry of sources.allow as a CIDR; nothing for the name of a host, which no NetworkPolicy knows. */ -}}
{{- define "ingestion.cidr" -}}
{{- if contains "/" . -}}{{ . }}
{{- else if contains ":" . -}}{{ . }}/128
{{- else if regexMatch "^[0-9.]+$" . -}}{{ . }}/32
{{- end -}}
{{- end -}}

{{- define "ingestion.storeEndpoint" -}}
{{- if .Values.store.embedded.enabled -}}
http://{{ include "ingestion.fullname" . }}-store.{{ .Release.Namespace }}.svc:7070
{{- else -}}
{{ .Values.store.external.endpoint | default "" }}
{{- end -}}
{{- end -}}

{{- define "ingestion.rootSecret" -}}
{{- .Values.store.embedded.existingSecret | default (printf "%s-store-root" (include "ingestion.fullname" .)) -}}
{{- end -}}

{{- /*
The data of the root Secret, as JSON: what is there, else a new key; nothing of an existingSecret that is not to be seen.
A new key is made once in a rendering and remembered: it goes into the Secret and into the digest of it.
*/ -}}
{{- define "ingestion.rootData" -}}
{{- if not (hasKey $ "rootData") -}}
  {{- $live := lookup "v1" "Secret" .Release.Namespace (include "ingestion.rootSecret" .) -}}
  {{- $data := ($live).data | default dict -}}
  {{- if not (or $data .Values.store.embedded.existingSecret) -}}
    {{- $data = dict "ROOT_ACCESS_KEY_ID" ("root" | b64enc) "ROOT_SECRET_ACCESS_KEY" (randAlphaNum 40 | b64enc) -}}
  {{- end -}}
  {{- $_ := set $ "rootData" $data -}}
{{- end -}}
{{- toJson .rootData -}}
{{- end -}}

{{- /* The Secret of a provider's key, or nothing when it needs none. Argument: the provider. */ -}}
{{- define "ingestion.providerSecret" -}}
{{- if .existingSecret -}}{{ .existingSecret }}{{- else if .apiKey -}}ingestion-provider-{{ .name }}{{- end -}}
{{- end -}}

{{- /*
The credentials of a tenant's bucket, as JSON: given ones, else those that were made before, else new ones.
What was made before is read from the release's namespace alone: what stands in a tenant's own, the tenant can change,
and this goes to the Job that holds the store's root credentials.
They are made once in a rendering and remembered, as they go into two Secrets.
Arguments: a list of the root context and the tenant.
*/ -}}
{{- define "ingestion.tenantCredentials" -}}
{{- $root := index . 0 -}}{{- $tenant := index . 1 -}}
{{- if not (hasKey $root "tenantCredentials") -}}{{- $_ := set $root "tenantCredentials" dict -}}{{- end -}}
{{- if not (hasKey $root.tenantCredentials $tenant.namespace) -}}
  {{- $made := dict "id" (printf "%s-%s" $tenant.bucket (randAlphaNum 8 | lower)) "secret" (randAlphaNum 40) -}}
  {{- $live := lookup "v1" "Secret" $root.Release.Namespace (include "ingestion.accounts" $root) -}}
  {{- $account := splitList " " (index (($live).data | default dict) $tenant.namespace | default "" | b64dec | trim) -}}
  {{- if $tenant.credentials -}}
    {{- $made = dict "id" $tenant.credentials.accessKeyId "secret" $tenant.credentials.secretAccessKey -}}
  {{- else if and (eq (len $account) 3) (eq (first $account) $tenant.bucket) -}}
    {{- $made = dict "id" (index $account 1) "secret" (index $account 2) -}}
  {{- end -}}
  {{- $_ := set $root.tenantCredentials $tenant.namespace $made -}}
{{- end -}}
{{- index $root.tenantCredentials $tenant.namespace | toJson -}}
{{- end -}}

{{- /* The Secret of the release's namespace with the embedded store's accounts: by tenant, bucket, id and secret. */ -}}
{{- define "ingestion.accounts" -}}
{{- printf "%s-store-accounts" (include "ingestion.fullname" .) -}}
{{- end -}}

{{- /* A quantity as a plain number. */ -}}
{{- define "ingestion.number" -}}
{{- $small := dict "" 1 "n" 1e-9 "u" 1e-6 "m" 1e-3 "k" 1e3 "M" 1e6 "G" 1e9 "T" 1e12 "P" 1e15 "E" 1e18 -}}
{{- $units := merge $small (dict "Ki" 0x1p10 "Mi" 0x1p20 "Gi" 0x1p30 "Ti" 0x1p40 "Pi" 0x1p50 "Ei" 0x1p60) -}}
{{- $unit := regexFind "[A-Za-z]*$" (toString .) -}}
{{- mulf (toString . | trimSuffix $unit | float64) (get $units $unit) -}}
{{- end -}}

{{- /* What the schema cannot say; each message names the value and what is allowed. */ -}}
{{- define "ingestion.validate" -}}
{{- range (lookup "rbac.authorization.k8s.io/v1" "ClusterRole" "" "").items -}}
  {{- $labels := .metadata.labels | default dict -}}
  {{- $other := index $labels "app.kubernetes.io/instance" | default "" -}}
  {{- if and (index $labels "helm.sh/chart" | default "" | regexMatch "^ingestion-operator-[0-9]") (ne $other $.Release.Name) -}}
    {{- fail (printf "the release %q of this chart is in the cluster already; an operator sees to the whole cluster, and two would undo what the other writes" $other) -}}
  {{- end -}}
{{- end -}}
{{- $root := (include "ingestion.rootData" . | fromJson).ROOT_ACCESS_KEY_ID | default "" | b64dec -}}
{{- $namespaces := list -}}{{- $buckets := list -}}{{- $ids := list -}}
{{- range $index, $tenant := .Values.tenants -}}
  {{- if has $tenant.namespace $namespaces -}}
    {{- fail (printf "tenants[%d].namespace: %q is there twice; a namespace is one tenant" $index $tenant.namespace) -}}
  {{- end -}}
  {{- if has $tenant.bucket $buckets -}}
    {{- fail (printf "tenants[%d].bucket: %q belongs to another tenant; each needs its own" $index $tenant.bucket) -}}
  {{- end -}}
  {{- if eq $tenant.namespace $.Release.Namespace -}}
    {{- fail (printf "tenants[%d].namespace: %q is the release's own namespace, where the root credentials are; choose another" $index $tenant.namespace) -}}
  {{- end -}}
  {{- if $.Values.store.embedded.enabled -}}
    {{- if $tenant.existingSecret -}}
      {{- fail (printf "tenants[%d].existingSecret: only with store.embedded.enabled=false; the embedded store makes the credentials, or takes tenants[].credentials" $index) -}}
    {{- end -}}
  {{- else if not (or $tenant.existingSecret $tenant.credentials) -}}
    {{- fail (printf "tenants[%d]: an external store needs existingSecret or credentials" $index) -}}
  {{- end -}}
  {{- with $tenant.credentials -}}
    {{- /* Its server takes headers apart at some characters, its admin commands put the id into a URL as it is. */ -}}
    {{- if and $.Values.store.embedded.enabled (regexMatch "[^A-Za-z0-9._-]" .accessKeyId) -}}
      {{- fail (printf "tenants[%d].credentials.accessKeyId: %q is none that the embedded store takes: letters, digits, and . _ -" $index .accessKeyId) -}}
    {{- end -}}
    {{- if and $.Values.store.embedded.enabled (eq .accessKeyId $root) -}}
      {{- fail (printf "tenants[%d].credentials.accessKeyId: %q is the store's own account; choose another" $index .accessKeyId) -}}
    {{- end -}}
    {{- if and $.Values.store.embedded.enabled (has .accessKeyId $ids) -}}
      {{- fail (printf "tenants[%d].credentials.accessKeyId: %q is another tenant's; each needs its own" $index .accessKeyId) -}}
    {{- end -}}
    {{- $ids = append $ids .accessKeyId -}}
  {{- end -}}
  {{- $namespaces = append $namespaces $tenant.namespace -}}{{- $buckets = append $buckets $tenant.bucket -}}
{{- end -}}
{{- with .Values.worker.resources -}}
  {{- $requests := .requests | default dict -}}
  {{- range $name, $limit := .limits -}}
    {{- $request := get $requests $name | default 0 -}}
    {{- if gt (include "ingestion.number" $request | float64) (include "ingestion.number" $limit | float64) -}}
      {{- fail (printf "worker.resources.requests.%s: %v is more than its limit, %v" $name $request $limit) -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- with .Values.api.ingress -}}
  {{- if and .enabled (not .host) -}}
    {{- fail "api.ingress.host: it is needed with api.ingress.enabled" -}}
  {{- end -}}
  {{- if and .enabled (eq (empty .tlsSecret) (not .tlsElsewhere)) -}}
    {{- fail "api.ingress.tlsSecret: it is needed with api.ingress.enabled, as API keys must not cross the network in clear text; or, in its place, tlsElsewhere, where the load balancer has its certificate from elsewhere" -}}
  {{- end -}}
{{- end -}}
{{- $names := list -}}
{{- range $index, $provider := .Values.embeddingProviders -}}
  {{- if has $provider.name $names -}}
    {{- fail (printf "embeddingProviders[%d].name: %q is there twice" $index $provider.name) -}}
  {{- end -}}
  {{- $names = append $names $provider.name -}}
{{- end -}}
{{- end -}}
