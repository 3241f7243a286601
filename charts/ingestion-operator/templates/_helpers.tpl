{{- define "ingestion.fullname" -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{- define "ingestion.labels" -}}
app.kubernetes.io/name: ingestion-operator
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- /* Arguments: a list of the root context and the component's name. */ -}}
{{- define "ingestion.selector" -}}
app.kubernetes.io/name: ingestion-operator
app.kubernetes.io/instance: {{ (index . 0).Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- /* Arguments: a list of the root context and the component's name. */ -}}
{{- define "ingestion.image" -}}
{{- $image := index (index . 0).Values.images (index . 1) -}}
{{- printf "%s:%s" $image.repository ($image.tag | default (index . 0).Chart.AppVersion) -}}
{{- end -}}

{{- /* Arguments: values with nodeSelector and tolerations. */ -}}
{{- define "ingestion.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
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

{{- define "ingestion.storeEndpoint" -}}
{{- if .Values.store.embedded.enabled -}}
http://{{ include "ingestion.fullname" . }}-store.{{ .Release.Namespace }}.svc:7070
{{- else -}}
{{ .Values.store.external.endpoint }}
{{- end -}}
{{- end -}}

{{- define "ingestion.rootSecret" -}}
{{- .Values.store.embedded.existingSecret | default (printf "%s-store-root" (include "ingestion.fullname" .)) -}}
{{- end -}}

{{- /* The Secret of a provider's key, or nothing when it needs none. Argument: the provider. */ -}}
{{- define "ingestion.providerSecret" -}}
{{- if .existingSecret -}}{{ .existingSecret }}{{- else if .apiKey -}}ingestion-provider-{{ .name }}{{- end -}}
{{- end -}}

{{- /*
The credentials of a tenant's bucket, as JSON: given ones, else those the cluster has, else new ones.
They are made once in a rendering and remembered, as they go into two Secrets.
Arguments: a list of the root context and the tenant.
*/ -}}
{{- define "ingestion.tenantCredentials" -}}
{{- $root := index . 0 -}}{{- $tenant := index . 1 -}}
{{- if not (hasKey $root "tenantCredentials") -}}{{- $_ := set $root "tenantCredentials" dict -}}{{- end -}}
{{- if not (hasKey $root.tenantCredentials $tenant.namespace) -}}
  {{- $made := dict -}}
  {{- $live := lookup "v1" "Secret" $tenant.namespace "ingestion-store" -}}
  {{- if $tenant.credentials -}}
    {{- $made = dict "id" $tenant.credentials.accessKeyId "secret" $tenant.credentials.secretAccessKey -}}
  {{- else if and $live $live.data -}}
    {{- $made = dict "id" (b64dec $live.data.AWS_ACCESS_KEY_ID) "secret" (b64dec $live.data.AWS_SECRET_ACCESS_KEY) -}}
  {{- else -}}
    {{- $made = dict "id" (printf "%s-%s" $tenant.bucket (randAlphaNum 8 | lower)) "secret" (randAlphaNum 40) -}}
  {{- end -}}
  {{- $_ := set $root.tenantCredentials $tenant.namespace $made -}}
{{- end -}}
{{- index $root.tenantCredentials $tenant.namespace | toJson -}}
{{- end -}}

{{- /* What the schema cannot say; each message names the value and what is allowed. */ -}}
{{- define "ingestion.validate" -}}
{{- $namespaces := list -}}{{- $buckets := list -}}
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
  {{- $namespaces = append $namespaces $tenant.namespace -}}{{- $buckets = append $buckets $tenant.bucket -}}
{{- end -}}
{{- $names := list -}}
{{- range $index, $provider := .Values.embeddingProviders -}}
  {{- if has $provider.name $names -}}
    {{- fail (printf "embeddingProviders[%d].name: %q is there twice" $index $provider.name) -}}
  {{- end -}}
  {{- $names = append $names $provider.name -}}
{{- end -}}
{{- end -}}
