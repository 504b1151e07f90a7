{{/* The job file as a mapping, given as text or as values. */}}
{{- define "job.spec" -}}
{{- if kindIs "string" .Values.job.spec }}{{ .Values.job.spec | fromYaml | toJson }}{{ else }}{{ .Values.job.spec | toJson }}{{ end }}
{{- end }}

{{- define "job.compute" -}}
{{- (include "job.spec" . | fromJson).compute | default dict | toJson }}
{{- end }}

{{/* `compute.workers` and `compute.gpus_per_worker` of the job file. */}}
{{- define "job.workers" -}}
{{ (include "job.compute" . | fromJson).workers | default 1 | int }}
{{- end }}

{{- define "job.gpus" -}}
{{ (include "job.compute" . | fromJson).gpus_per_worker | default 0 | int }}
{{- end }}

{{/*
The release's name and a hash of all values: any change makes a new RayJob, and Helm deletes the old one. A RayJob is
never changed while it runs.
*/}}
{{- define "job.name" -}}
{{- $given := dict "spec" (include "job.spec" .) "attempt" .Values.job.attempt "version" .Chart.AppVersion }}
{{- range $name, $value := omit .Values "job" "global" }}
{{- /* Helm 3 keeps nulls and Helm 4 drops them: remove them for both. */}}
{{- if not (kindIs "invalid" $value) }}{{ $_ := set $given $name $value }}{{ end }}
{{- end }}
{{- .Release.Name }}-{{ $given | toJson | sha256sum | trunc 8 }}
{{- end }}

{{- define "job.labels" -}}
app.kubernetes.io/name: finetune-job
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: kitae
kitae.dev/team: {{ (include "job.spec" . | fromJson).team | default "default" }}
kitae.dev/runner: {{ include "job.name" . }}
{{- end }}

{{/* Labels of pods; KubeRay sets their `app.kubernetes.io/name`. */}}
{{- define "job.podLabels" -}}
{{- $labels := include "job.labels" . | fromYaml }}
{{- omit $labels "app.kubernetes.io/name" | toYaml }}
{{- end }}

{{- define "job.image" -}}
{{- $kind := ternary "gpu" "cpu" (ne (include "job.gpus" .) "0") }}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default (printf "%s-%s" $.Chart.AppVersion $kind) }}{{ end }}
{{- end }}
{{- end }}

{{/* Checks that a JSON schema cannot express. Reports all findings at once. */}}
{{- define "job.check" -}}
{{- $found := list }}
{{- $v := .Values }}
{{- $spec := include "job.spec" . | fromJson }}
{{- if gt (len .Release.Name) 38 }}{{ $found = append $found (printf "the release's name has %d characters; at most 38 are allowed: choose a shorter one" (len .Release.Name)) }}{{ end }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" .Release.Name) }}{{ $found = append $found (printf "the release's name %q must begin with a letter and have no dots: choose another" .Release.Name) }}{{ end }}
{{- if not $v.job.spec }}{{ $found = append $found "job.spec is empty: give the job file, with --set-file job.spec=job.yaml" }}
{{- else if hasKey $spec "Error" }}{{ $found = append $found (printf "job.spec is not a YAML mapping: %s" $spec.Error) }}
{{- else }}
{{- if and (ne (dig "serving" "deploy" true $spec) false) (not $v.endpointUrl) }}{{ $found = append $found "endpointUrl is empty, and the job deploys its model: give the endpoint's URL, or set serving: {deploy: false} in the job file" }}{{ end }}
{{- $wanted := (include "job.compute" . | fromJson).cpus_per_worker | default 1 | float64 }}
{{- $cpu := $v.worker.cpu }}
{{- $cpus := ternary (divf (trimSuffix "m" $cpu | float64) 1000) (float64 $cpu) (hasSuffix "m" $cpu) }}
{{- if gt $wanted $cpus }}{{ $found = append $found (printf "worker.cpu is %s, and the job file requests %v CPUs a worker (compute.cpus_per_worker): raise the first or lower the second" $cpu $wanted) }}{{ end }}
{{- end }}
{{- if not $v.image.repository }}{{ $found = append $found "image.repository is empty: name the image, such as registry.example/kitae" }}{{ end }}
{{- if eq $v.image.tag "latest" }}{{ $found = append $found "image.tag is latest, which changes over time: give a version" }}{{ end }}
{{- if not $v.store.uri }}{{ $found = append $found "store.uri is empty: name bucket and prefix, such as s3://models/kitae" }}{{ end }}
{{- if not $v.store.endpointUrl }}{{ $found = append $found "store.endpointUrl is empty: give the store's address, such as https://s3.example" }}{{ end }}
{{- if not $v.store.existingSecret }}{{ $found = append $found "store.existingSecret is empty: there are no default credentials; name the Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" }}{{ end }}
{{- if $found }}{{ fail (printf "\n\n%d value(s) are wrong:\n  - %s\n" (len $found) (join "\n  - " $found)) }}{{ end }}
{{- end }}
