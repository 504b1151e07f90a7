{{/* Checks that a JSON schema cannot express. Reports all findings at once. */}}
{{- define "kitae.check" -}}
{{- $found := list }}
{{- $v := .Values }}
{{- $name := include "kitae.fullname" . }}
{{- /* KubeRay derives names of at most 50 characters from it and truncates longer ones. */}}
{{- if gt (len $name) 24 }}{{ $found = append $found (printf "the release's name makes %q, which has %d characters; at most 24 are allowed: choose a shorter one" $name (len $name)) }}{{ end }}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) }}{{ $found = append $found (printf "the release's name makes %q, and must begin with a letter and have no dots: choose another" $name) }}{{ end }}
{{- if not $v.image.repository }}{{ $found = append $found "image.repository is empty: name the image, such as registry.example/kitae" }}{{ end }}
{{- if eq $v.image.tag "latest" }}{{ $found = append $found "image.tag is latest, which changes over time: give a version" }}{{ end }}
{{- if not $v.store.uri }}{{ $found = append $found "store.uri is empty: name bucket and prefix, such as s3://models/kitae" }}{{ end }}
{{- if not $v.store.endpointUrl }}{{ $found = append $found "store.endpointUrl is empty: give the store's address, such as https://s3.example" }}{{ end }}
{{- if and $v.store.ca.existingConfigMap $v.store.ca.pem }}{{ $found = append $found "store.ca has both existingConfigMap and pem: give one of them" }}{{ end }}
{{- with $v.secrets }}
{{- if .externalSecrets.enabled }}
{{- range $key := list "storeName" "apiKey" "store" }}
{{- if not (get $v.secrets.externalSecrets $key) }}{{ $found = append $found (printf "secrets.externalSecrets.%s is empty, and externalSecrets is enabled" $key) }}{{ end }}
{{- end }}
{{- range $team, $settings := $v.teams }}
{{- if not $settings.storeSecretEntry }}{{ $found = append $found (printf "teams.%s.storeSecretEntry is empty: a team's jobs do not get the endpoint's credentials; name an entry with credentials of the team's own" $team) }}
{{- else if eq $settings.storeSecretEntry $v.secrets.externalSecrets.store }}{{ $found = append $found (printf "teams.%s.storeSecretEntry is %s, the entry of the endpoint's credentials: give the team's jobs credentials of their own" $team $settings.storeSecretEntry) }}
{{- end }}
{{- end }}
{{- if or .apiKey.existingSecret .store.existingSecret }}{{ $found = append $found "secrets has an existingSecret and externalSecrets: give one of them" }}{{ end }}
{{- else }}
{{- if not .apiKey.existingSecret }}{{ $found = append $found "secrets.apiKey.existingSecret is empty: there is no default key; create a Secret with KITAE_API_KEY and name it, or enable secrets.externalSecrets" }}{{ end }}
{{- if not .store.existingSecret }}{{ $found = append $found "secrets.store.existingSecret is empty: there are no default credentials; create a Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and name it, or enable secrets.externalSecrets" }}{{ end }}
{{- end }}
{{- end }}
{{- if and $v.tracking.wandb (not $v.tracking.existingSecret) }}{{ $found = append $found "tracking.wandb is on, and tracking.existingSecret is empty: name the Secret with WANDB_API_KEY" }}{{ end }}
{{- with $v.gcsFaultTolerance }}
{{- if and .enabled (not .redisAddress) }}{{ $found = append $found "gcsFaultTolerance.redisAddress is empty: name the Redis, such as redis.kitae:6379" }}{{ end }}
{{- if and .enabled (not .existingSecret) }}{{ $found = append $found "gcsFaultTolerance.existingSecret is empty: there is no default password; name the Secret with the password" }}{{ end }}
{{- end }}
{{- if $v.networkPolicy.enabled }}
{{- with $v.networkPolicy.tracking }}
{{- if and $v.tracking.wandb (not (or .cidrs .namespaceLabels .podLabels)) }}{{ $found = append $found "tracking.wandb is on, and networkPolicy.tracking is empty, so that jobs reach no tracker: give it the cidrs of W&B's server (or turn networkPolicy.enabled off)" }}{{ end }}
{{- end }}
{{- $places := dict "networkPolicy.store" $v.networkPolicy.store }}
{{- if $v.gcsFaultTolerance.enabled }}{{ $_ := set $places "gcsFaultTolerance.egress" $v.gcsFaultTolerance.egress }}{{ end }}
{{- range $where, $place := $places }}
{{- if not (or $place.cidrs $place.namespaceLabels $place.podLabels) }}{{ $found = append $found (printf "%s is empty: give cidrs, or namespaceLabels and podLabels (or turn networkPolicy.enabled off)" $where) }}{{ end }}
{{- end }}
{{- end }}
{{- with $v.ingress }}{{ if .enabled }}
{{- if not .host }}{{ $found = append $found "ingress.host is empty: give the host name for clients" }}{{ end }}
{{- if not .tlsSecret }}{{ $found = append $found "ingress.tlsSecret is empty: API keys are sent over this connection; name the Secret with the certificate" }}{{ end }}
{{- end }}{{ end }}
{{- with $v.gateway }}{{ if .enabled }}
{{- if not .host }}{{ $found = append $found "gateway.host is empty: give the host name for clients" }}{{ end }}
{{- if and (not .parent.name) (not (and .className .tlsSecret)) }}{{ $found = append $found "gateway needs parent.name, or className and tlsSecret to create a Gateway" }}{{ end }}
{{- end }}{{ end }}
{{- range $group := list "api" "inference" }}
{{- $g := get $v $group }}
{{- if gt (int $g.minReplicas) (int $g.maxReplicas) }}{{ $found = append $found (printf "%s.minReplicas is %d, more than maxReplicas %d" $group (int $g.minReplicas) (int $g.maxReplicas)) }}{{ end }}
{{- end }}
{{- $namespaces := dict .Release.Namespace "the release" }}
{{- range $team, $settings := $v.teams }}
{{- $namespace := include "kitae.namespaceOf" (dict "team" $team "settings" $settings) }}
{{- if hasKey $namespaces $namespace }}{{ $found = append $found (printf "teams.%s: its namespace %s is also that of %s: each team needs its own" $team $namespace (get $namespaces $namespace)) }}{{ end }}
{{- $_ := set $namespaces $namespace (printf "team %s" $team) }}
{{- if and $v.queues.enabled (not $settings.quotas) }}{{ $found = append $found (printf "teams.%s.quotas is empty: give it a quota of at least one flavor" $team) }}{{ end }}
{{- range $flavor, $quota := $settings.quotas }}
{{- if not (hasKey $v.flavors $flavor) }}{{ $found = append $found (printf "teams.%s.quotas.%s: no such flavor; flavors has %s" $team $flavor (keys $v.flavors | sortAlpha | join ", " | default "none")) }}
{{- else }}
{{- $resource := (get $v.flavors $flavor).resource }}
{{- if and $quota.gpu (not $resource) }}{{ $found = append $found (printf "teams.%s.quotas.%s.gpu: flavors.%s.resource names no GPU, such as nvidia.com/gpu" $team $flavor $flavor) }}{{ end }}
{{- if and $resource (not $quota.gpu) }}{{ $found = append $found (printf "teams.%s.quotas.%s.gpu is missing: the flavor has GPUs (%s)" $team $flavor $resource) }}{{ end }}
{{- with $quota.gpu }}{{ if hasKey . "lendingLimit" }}{{ if gt (int .lendingLimit) (int .nominal) }}{{ $found = append $found (printf "teams.%s.quotas.%s.gpu.lendingLimit is %d, more than nominal %d" $team $flavor (int .lendingLimit) (int .nominal)) }}{{ end }}{{ end }}{{ end }}
{{- end }}
{{- end }}
{{- end }}
{{- if $found }}{{ fail (printf "\n\n%d value(s) are wrong:\n  - %s\n" (len $found) (join "\n  - " $found)) }}{{ end }}
{{- end }}
