{{- define "jobcell.name" -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}{{ .Release.Name | trunc 50 | trimSuffix "-" }}{{- else -}}{{ printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}{{- end -}}
{{- end }}

{{- define "jobcell.selector" -}}
app.kubernetes.io/name: jobcell
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "jobcell.labels" -}}
{{ include "jobcell.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "jobcell.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}

{{- define "jobcell.account" -}}
{{- if .Values.serviceAccount.create -}}{{ default (include "jobcell.name" .) .Values.serviceAccount.name }}{{- else -}}{{ default "default" .Values.serviceAccount.name }}{{- end -}}
{{- end }}

{{/* What every container of the program may do: nothing. */}}
{{- define "jobcell.sealed" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
runAsUser: 7807
runAsGroup: 7807
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* Settings of the server: the chart's own, and over them the operator's. */}}
{{- define "jobcell.serverSettings" -}}
{{- $own := dict "server" (dict "listen" "0.0.0.0:7807") -}}
{{- if .Values.server.tlsSecret -}}
{{- $_ := set $own.server "tls" (dict "cert" "/etc/jobcell/tls/tls.crt" "key" "/etc/jobcell/tls/tls.key") -}}
{{- end -}}
{{ toYaml (mergeOverwrite $own (deepCopy .Values.server.settings)) }}
{{- end }}

{{- define "jobcell.backendUrl" -}}
{{- if .Values.agent.backendUrl -}}
{{ .Values.agent.backendUrl }}
{{- else if .Values.server.enabled -}}
{{ ternary "https" "http" (not (empty .Values.server.tlsSecret)) }}://{{ include "jobcell.name" . }}-server:7807
{{- else -}}
{{ fail "agent.backendUrl has to be set where server.enabled is false: the agents' server is elsewhere" }}
{{- end -}}
{{- end }}

{{- define "jobcell.agentSettings" -}}
{{- $main := dict "url" (include "jobcell.backendUrl" .) -}}
{{- if .Values.agent.caSecret }}{{ $_ := set $main "ca_file" "/etc/jobcell/ca/ca.crt" }}{{ end -}}
{{- $host := ternary "unix:///run/engine/docker.sock" "unix:///var/run/docker.sock" (eq .Values.agent.engine.kind "dind") -}}
{{- $own := dict
      "agent" (dict "listen" "0.0.0.0:7808" "drain_mode" .Values.agent.drainMode "drain_timeout" (printf "%ds" (int .Values.agent.drainSeconds)))
      "backends" (dict "main" $main)
      "docker" (dict "host" $host) -}}
{{ toYaml (mergeOverwrite $own (deepCopy .Values.agent.settings)) }}
{{- end }}
