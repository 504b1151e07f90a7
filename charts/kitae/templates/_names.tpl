{{/* Names and labels. */}}
{{- define "kitae.fullname" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ printf "%s-%s" .Release.Name .Chart.Name }}{{ end }}
{{- end }}

{{- define "kitae.labels" -}}
app.kubernetes.io/name: kitae
{{ include "kitae.podLabels" . }}
{{- end }}

{{/* KubeRay sets `app.kubernetes.io/name: kuberay` on pods and finds the head by it: pods get no other name. */}}
{{- define "kitae.podLabels" -}}
{{ include "kitae.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "kitae.selector" -}}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/part-of: kitae
{{- end }}

{{/* The same for objects in a team's namespace: (dict "root" $ "team" NAME). */}}
{{- define "kitae.teamLabels" -}}
{{ include "kitae.labels" .root }}
kitae.dev/team: {{ .team }}
{{- end }}

{{- define "kitae.namespaceOf" -}}
{{ .settings.namespace | default (printf "kitae-%s" .team) }}
{{- end }}

{{- define "kitae.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default (printf "%s-%s" $.Chart.AppVersion $.Values.profile) }}{{ end }}
{{- end }}
{{- end }}

{{- define "kitae.storeSecret" -}}
{{ .Values.secrets.store.existingSecret | default "kitae-store" }}
{{- end }}

{{- define "kitae.apiKeySecret" -}}
{{ .Values.secrets.apiKey.existingSecret | default (printf "%s-api-key" (include "kitae.fullname" .)) }}
{{- end }}

{{- define "kitae.caConfigMap" -}}
{{- with .Values.store.ca }}{{ .existingConfigMap | default (ternary "kitae-store-ca" "" (ne .pem "")) }}{{ end }}
{{- end }}

{{/* Names of cluster-wide objects contain the namespace, so that two releases do not share them. */}}
{{- define "kitae.clusterName" -}}
{{ .Release.Namespace }}-{{ include "kitae.fullname" . }}
{{- end }}

{{- define "kitae.serveService" -}}
{{ include "kitae.fullname" . }}-serve-svc
{{- end }}
