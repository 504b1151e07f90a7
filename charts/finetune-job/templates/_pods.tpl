{{- define "job.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: {{ .Values.podSecurity.runAsUser }}
runAsGroup: {{ .Values.podSecurity.runAsGroup }}
fsGroup: {{ .Values.podSecurity.fsGroup }}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* First fields of a pod's spec. */}}
{{- define "job.podSpec" -}}
serviceAccountName: {{ .Values.serviceAccount }}
automountServiceAccountToken: false
terminationGracePeriodSeconds: 120
securityContext:
  {{- include "job.podSecurityContext" . | nindent 2 }}
{{- with .Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* First fields of a container. */}}
{{- define "job.container" -}}
image: {{ include "job.image" . | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{- define "job.environment" -}}
KITAE_STORE: {{ .Values.store.uri | quote }}
KITAE_TEAM: {{ (include "job.spec" . | fromJson).team | default "default" | quote }}
AWS_ENDPOINT_URL: {{ .Values.store.endpointUrl | quote }}
{{- with .Values.store.region }}
AWS_REGION: {{ . | quote }}
{{- end }}
{{- with .Values.store.ca.existingConfigMap }}
AWS_CA_BUNDLE: /etc/kitae/ca/{{ $.Values.store.ca.key }}
{{- end }}
{{- with .Values.endpointUrl }}
KITAE_ENDPOINT_URL: {{ . | quote }}
{{- end }}
KITAE_CACHE: /cache/kitae
HF_HOME: /cache/huggingface
VLLM_CACHE_ROOT: /cache/vllm
TORCH_EXTENSIONS_DIR: /cache/torch
HOME: /home/kitae
PYTHONDONTWRITEBYTECODE: "1"
RAY_USAGE_STATS_ENABLED: "0"
RAY_JOB_STOP_WAIT_TIME_S: "100"
{{- end }}

{{/* A pod of the job's Ray cluster: (dict "root" $ "name" CONTAINER "size" SIZE "gpus" COUNT). */}}
{{- define "job.pod" -}}
{{- $root := .root }}
metadata:
  labels:
    {{- include "job.podLabels" $root | nindent 4 }}
  annotations:
    # Not in a ConfigMap: the job file of an attempt is deleted with it, and a later attempt has another.
    kitae.dev/job-file: |
      {{- if kindIs "string" $root.Values.job.spec }}
      {{- $root.Values.job.spec | nindent 6 }}
      {{- else }}
      {{- toYaml $root.Values.job.spec | nindent 6 }}
      {{- end }}
spec:
  {{- include "job.podSpec" $root | nindent 2 }}
  containers:
    - name: {{ .name }}
      {{- include "job.container" $root | nindent 6 }}
      env:
        {{- $environment := mustMergeOverwrite (include "job.environment" $root | fromYaml) $root.Values.nccl $root.Values.environment }}
        {{- range $name, $value := $environment }}
        - name: {{ $name }}
          value: {{ $value | quote }}
        {{- end }}
        {{- with $root.Values.tracking.existingSecret }}
        {{- $secret := . }}
        {{- range $name := list "MLFLOW_TRACKING_USERNAME" "MLFLOW_TRACKING_PASSWORD" "MLFLOW_TRACKING_TOKEN" "WANDB_API_KEY" }}
        {{- if not (hasKey $environment $name) }}
        - name: {{ $name }}
          valueFrom: {secretKeyRef: {name: {{ $secret }}, key: {{ $name }}, optional: true}}
        {{- end }}
        {{- end }}
        {{- end }}
      envFrom:
        - secretRef: {name: {{ $root.Values.store.existingSecret }}}
      lifecycle:
        preStop:
          exec:
            command: [python, -m, ray_jobs, notice, /etc/kitae/job.yaml, --wait-s, "90"]
      resources:
        {{- range $kind, $disk := dict "requests" "1Gi" "limits" $root.Values.disk }}
        {{ $kind }}:
          cpu: {{ $.size.cpu | quote }}
          memory: {{ $.size.memory }}
          ephemeral-storage: {{ $disk }}
          {{- if $.gpus }}
          {{ $.size.gpuResource }}: {{ $.gpus }}
          {{- end }}
        {{- end }}
      volumeMounts:
        - {name: job, mountPath: /etc/kitae/job.yaml, subPath: job.yaml, readOnly: true}
        {{- with $root.Values.store.ca.existingConfigMap }}
        - {name: store-ca, mountPath: /etc/kitae/ca, readOnly: true}
        {{- end }}
        - {name: tmp, mountPath: /tmp}
        - {name: home, mountPath: /home/kitae}
        - {name: cache, mountPath: /cache}
        - {name: shared-memory, mountPath: /dev/shm}
  volumes:
    - name: job
      downwardAPI: {items: [{path: job.yaml, fieldRef: {fieldPath: "metadata.annotations['kitae.dev/job-file']"}}]}
    {{- with $root.Values.store.ca.existingConfigMap }}
    - name: store-ca
      configMap: {name: {{ . }}}
    {{- end }}
    - name: tmp
      emptyDir: {sizeLimit: 20Gi}
    - name: home
      emptyDir: {sizeLimit: 1Gi}
    - name: cache
      emptyDir: {sizeLimit: {{ $root.Values.cache }}}
    - name: shared-memory
      emptyDir: {medium: Memory, sizeLimit: {{ .size.sharedMemory | default .size.memory }}}
{{- end }}
