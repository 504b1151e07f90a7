{{/* Fields that all pods of the endpoint share. */}}
{{- define "kitae.podSecurityContext" -}}
runAsNonRoot: true
runAsUser: {{ .Values.podSecurity.runAsUser }}
runAsGroup: {{ .Values.podSecurity.runAsGroup }}
fsGroup: {{ .Values.podSecurity.fsGroup }}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "kitae.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Environment variables that name the store, for the endpoint and every job. */}}
{{- define "kitae.storeEnvironment" -}}
KITAE_STORE: {{ .Values.store.uri | quote }}
AWS_ENDPOINT_URL: {{ .Values.store.endpointUrl | quote }}
{{- with .Values.store.region }}
AWS_REGION: {{ . | quote }}
{{- end }}
{{- end }}

{{- define "kitae.offlineEnvironment" -}}
{{- if .Values.offline.enabled }}
{{- if .Values.offline.hubUrl }}
HF_ENDPOINT: {{ .Values.offline.hubUrl | quote }}
{{- else }}
HF_HUB_OFFLINE: "1"
{{- end }}
{{- end }}
{{- end }}

{{/* Number and placement of ingress processes: one in each pod of the group `api`. */}}
{{- define "kitae.ingressOptions" -}}
{{- $scaling := dict "min_replicas" (int .Values.api.minReplicas) "max_replicas" (int .Values.api.maxReplicas) "target_ongoing_requests" (int .Values.api.targetOngoingRequests) }}
{{- $actor := dict "num_cpus" 0 "resources" (dict "kitae_api" 1) }}
{{- dict "num_replicas" "auto" "autoscaling_config" $scaling "ray_actor_options" $actor | toJson }}
{{- end }}

{{- define "kitae.environment" -}}
{{ include "kitae.storeEnvironment" . }}
{{- include "kitae.offlineEnvironment" . }}
KITAE_HOST: 0.0.0.0
KITAE_PORT: "8000"
KITAE_CLUSTER: /etc/kitae/cluster/cluster.yaml
KITAE_KEEP_DEPLOYMENTS: "on"
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH: serving.http.serve_proxy:middlewares
KITAE_INGRESS_OPTIONS: {{ include "kitae.ingressOptions" . | quote }}
{{- if .Values.tracking.wandb }}
KITAE_WANDB: "on"
{{- end }}
KITAE_JOB_DEFAULTS: {{ (get .Values.profiles .Values.profile).jobDefaults | toJson | quote }}
KITAE_METRICS_OPEN: {{ ternary "on" "off" .Values.monitoring.open | quote }}
KITAE_MAX_BODY_BYTES: {{ .Values.limits.maxBodyBytes | int64 | quote }}
KITAE_MAX_FILE_BYTES: {{ .Values.limits.maxFileBytes | int64 | quote }}
KITAE_KEY_LIMITS: {{ .Values.limits.keys | toJson | quote }}
KITAE_TEAM_LIMITS: {{ .Values.limits.teams | toJson | quote }}
{{- if not (kindIs "invalid" .Values.limits.answersKeptDays) }}
KITAE_ANSWERS_KEPT_DAYS: {{ .Values.limits.answersKeptDays | int64 | quote }}
{{- end }}
KITAE_MAX_ONGOING_REQUESTS: {{ .Values.limits.maxOngoingRequests | int64 | quote }}
{{- with .Values.corsOrigins }}
KITAE_CORS_ORIGINS: {{ join "," . | quote }}
{{- end }}
KITAE_CACHE: /cache/kitae
HF_HOME: /cache/huggingface
VLLM_CACHE_ROOT: /cache/vllm
TORCH_EXTENSIONS_DIR: /cache/torch
HOME: /home/kitae
PYTHONDONTWRITEBYTECODE: "1"
RAY_USAGE_STATS_ENABLED: "0"
{{- with include "kitae.caConfigMap" . }}
AWS_CA_BUNDLE: /etc/kitae/ca/{{ $.Values.store.ca.key }}
{{- end }}
{{- end }}

{{/*
A pod template: (dict "root" $ "component" head|api|inference "size" SIZE "scheduling" VALUES "account" NAME
"ports" YAML).
*/}}
{{- define "kitae.pod" -}}
{{- $root := .root }}
metadata:
  labels:
    {{- include "kitae.podLabels" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
  {{- if eq .component "api" }}
  annotations:
    # An ingress process reads the file at start.
    kitae.dev/cluster-settings: {{ include "kitae.cluster" $root | sha256sum | trunc 16 | quote }}
  {{- end }}
spec:
  serviceAccountName: {{ .account }}
  # The token is in a container of its own, which runs no code of the Ray cluster: `kubernetes-token` below.
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 120
  securityContext:
    {{- include "kitae.podSecurityContext" $root | nindent 4 }}
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with .scheduling.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .scheduling.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .scheduling.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if and $root.Values.topologySpread (ne .component "head") }}
  topologySpreadConstraints:
    {{- range $key := list "topology.kubernetes.io/zone" "kubernetes.io/hostname" }}
    - maxSkew: 1
      topologyKey: {{ $key }}
      whenUnsatisfiable: ScheduleAnyway
      labelSelector:
        matchLabels:
          {{- include "kitae.selector" $root | nindent 10 }}
          app.kubernetes.io/component: {{ $.component }}
    {{- end }}
  {{- end }}
  {{- if eq .component "api" }}
  initContainers:
    # Restarted by itself, unlike the pod's containers (`restartPolicy: Never` with this autoscaler).
    - name: launcher
      restartPolicy: Always
      image: {{ include "kitae.image" $root | quote }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      command: [python, -m, ray_jobs.launch.sidecar, /run/kitae/launcher.sock]
      securityContext:
        {{- include "kitae.securityContext" $root | nindent 8 }}
      env:
        - {name: KITAE_CLUSTER, value: /etc/kitae/cluster/cluster.yaml}
        - {name: HOME, value: /tmp}
        - {name: PYTHONDONTWRITEBYTECODE, value: "1"}
      resources:
        requests: {cpu: 100m, memory: 256Mi, ephemeral-storage: 100Mi}
        limits: {cpu: "1", memory: 1Gi, ephemeral-storage: 1Gi}
      volumeMounts:
        - {name: cluster, mountPath: /etc/kitae/cluster, readOnly: true}
        - {name: launcher, mountPath: /run/kitae}
        - {name: launcher-tmp, mountPath: /tmp}
        - {name: kubernetes-token, mountPath: /var/run/secrets/kubernetes.io/serviceaccount, readOnly: true}
  {{- end }}
  containers:
    - name: ray
      image: {{ include "kitae.image" $root | quote }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      securityContext:
        {{- include "kitae.securityContext" $root | nindent 8 }}
      ports:
        {{- .ports | nindent 8 }}
      env:
        - name: POD_NAMESPACE
          valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
        # KubeRay adds RAY_CLUSTER_NAME too, but last, where no other variable can refer to it.
        - name: POD_RAY_CLUSTER
          valueFrom: {fieldRef: {fieldPath: "metadata.labels['ray.io/cluster']"}}
        - name: RAY_DASHBOARD_ADDRESS
          value: http://$(POD_RAY_CLUSTER)-head-svc.$(POD_NAMESPACE).svc:8265
        {{- if eq .component "api" }}
        - name: KITAE_API_KEY
          valueFrom: {secretKeyRef: {name: {{ include "kitae.apiKeySecret" $root }}, key: {{ $root.Values.secrets.apiKey.key }}}}
        - {name: KITAE_LAUNCHER, value: /run/kitae/launcher.sock}
        {{- end }}
        {{- $environment := include "kitae.environment" $root | fromYaml }}
        {{- range $name, $value := mustMergeOverwrite $environment $root.Values.environment }}
        - name: {{ $name }}
          value: {{ $value | quote }}
        {{- end }}
      envFrom:
        - secretRef: {name: {{ include "kitae.storeSecret" $root }}}
      resources:
        {{- range $kind, $disk := dict "requests" "1Gi" "limits" .size.disk }}
        {{ $kind }}:
          cpu: {{ $.size.cpu | quote }}
          memory: {{ $.size.memory }}
          ephemeral-storage: {{ $disk }}
          {{- if $.size.gpu }}
          {{ $.size.gpuResource }}: {{ $.size.gpu }}
          {{- end }}
        {{- end }}
      volumeMounts:
        - {name: cluster, mountPath: /etc/kitae/cluster, readOnly: true}
        {{- with include "kitae.caConfigMap" $root }}
        - {name: store-ca, mountPath: /etc/kitae/ca, readOnly: true}
        {{- end }}
        {{- if eq .component "api" }}
        - {name: launcher, mountPath: /run/kitae}
        {{- end }}
        - {name: tmp, mountPath: /tmp}
        - {name: home, mountPath: /home/kitae}
        - {name: cache, mountPath: /cache}
        - {name: shared-memory, mountPath: /dev/shm}
  volumes:
    - name: cluster
      configMap: {name: {{ include "kitae.fullname" $root }}-cluster}
    {{- with include "kitae.caConfigMap" $root }}
    - name: store-ca
      configMap: {name: {{ . }}}
    {{- end }}
    {{- if ne .component "inference" }}
    - name: kubernetes-token
      projected:
        sources:
          - serviceAccountToken: {path: token, expirationSeconds: 3600}
          - configMap: {name: kube-root-ca.crt, items: [{key: ca.crt, path: ca.crt}]}
          - downwardAPI: {items: [{path: namespace, fieldRef: {fieldPath: metadata.namespace}}]}
    {{- end }}
    {{- if eq .component "api" }}
    - name: launcher
      emptyDir: {sizeLimit: 1Mi}
    - name: launcher-tmp
      emptyDir: {sizeLimit: 100Mi}
    {{- end }}
    - name: tmp
      emptyDir: {sizeLimit: {{ .size.disk }}}
    - name: home
      emptyDir: {sizeLimit: 1Gi}
    - name: cache
      emptyDir: {sizeLimit: {{ .size.cache | default .size.disk }}}
    - name: shared-memory
      emptyDir: {medium: Memory, sizeLimit: {{ .size.sharedMemory | default .size.memory }}}
{{- end }}
