{{/* The launcher's settings, `cluster.yaml`; the schema is ray_jobs/cluster/settings.py. */}}
{{- define "kitae.cluster" -}}
{{- $sizes := get .Values.profiles .Values.profile }}
{{- $teams := dict }}
{{- range $team, $settings := .Values.teams }}
{{- $namespace := include "kitae.namespaceOf" (dict "team" $team "settings" $settings) }}
{{- $_ := set $teams $team (dict "namespace" $namespace "queue" $.Values.queues.queue "cohort" $.Values.queues.cohort "cluster_queue" (printf "kitae-%s" $team) "max_priority" (int (dig "maxPriority" 100 $settings))) }}
{{- end }}
{{- $flavors := dict }}
{{- range $flavor, $settings := .Values.flavors }}
{{- $_ := set $flavors $flavor (dict "resource" $settings.resource "node_labels" ($settings.nodeLabels | default dict) "tolerations" ($settings.tolerations | default list) "price_per_hour" $settings.pricePerHour) }}
{{- end }}
{{- $environment := mustMergeOverwrite (include "kitae.offlineEnvironment" . | fromYaml) (dict "KITAE_ENDPOINT_URL" (printf "http://%s.%s.svc:8000" (include "kitae.serveService" .) .Release.Namespace)) .Values.jobs.environment }}
image: {{ include "kitae.image" . | quote }}
image_pull_policy: {{ .Values.image.pullPolicy }}
image_pull_secrets: {{ .Values.image.pullSecrets | toJson }}
service_account: {{ .Values.jobs.serviceAccount }}
store:
  {{- include "kitae.storeEnvironment" . | nindent 2 }}
store_secret: {{ include "kitae.storeSecret" . }}
{{- with .Values.tracking.existingSecret }}
tracking_secret: {{ . }}
{{- end }}
{{- with include "kitae.caConfigMap" . }}
store_ca: {config_map: {{ . }}, key: {{ $.Values.store.ca.key | quote }}}
{{- end }}
teams:
  {{- toYaml $teams | nindent 2 }}
flavors:
  {{- toYaml $flavors | nindent 2 }}
priority_classes:
  {{- toYaml .Values.priorityClasses | nindent 2 }}
{{- with $sizes.jobWorker }}
worker: {cpu: {{ .cpu | quote }}, memory: {{ .memory }}, gpu: {{ .gpu }}, shared_memory: {{ .sharedMemory }}}
{{- end }}
{{- with $sizes.jobHead }}
head: {cpu: {{ .cpu | quote }}, memory: {{ .memory }}}
{{- end }}
cache: {size: {{ .Values.jobs.cache }}}
disk: {{ .Values.jobs.disk }}
environment:
  {{- toYaml $environment | nindent 2 }}
{{- with .Values.jobs }}
scheduling: {backoff_limit: {{ .backoffLimit }}, deadline_s: {{ .deadlineSeconds | toJson }}, waiting_deadline_s: {{ .waitingDeadlineSeconds | toJson }}, ttl_s: {{ .ttlSeconds }}}
{{- end }}
{{- with .Values.podSecurity }}
pod_security: {run_as_user: {{ .runAsUser }}, run_as_group: {{ .runAsGroup }}, fs_group: {{ .fsGroup }}}
{{- end }}
{{- end }}
