{{- define "centernet.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimAll "-_." }}
{{- end }}

{{- define "centernet.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimAll "-" }}
{{- else if contains .Chart.Name .Release.Name }}
{{- .Release.Name | trunc 50 | trimAll "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 50 | trimAll "-" }}
{{- end }}
{{- end }}

{{/* Labels that choose the pods of a component: (list $ "server"). They never change. */}}
{{- define "centernet.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "centernet.name" $root | quote }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "centernet.labels" -}}
{{- $root := index . 0 -}}
{{ include "centernet.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end }}

{{- define "centernet.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- define "centernet.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "centernet.fullname" .) }}
{{- end }}

{{- define "centernet.planClaim" -}}
{{ .Values.plan.cache.existingClaim | default (printf "%s-plans" (include "centernet.fullname" .)) }}
{{- end }}

{{- define "centernet.podSecurity" -}}
runAsNonRoot: true
runAsUser: 1000
runAsGroup: 1000
fsGroup: 1000
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "centernet.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- define "centernet.serverResources" -}}
{{- $resources := deepCopy .Values.resources }}
{{- if ne .Values.variant "cpu" }}
{{- $limits := set (default dict $resources.limits) .Values.gpu.resource .Values.gpu.count }}
{{- $resources = set $resources "limits" $limits }}
{{- end }}
{{- toYaml $resources }}
{{- end }}

{{/* The recording rule that the autoscalers follow. */}}
{{- define "centernet.queueMetric" -}}centernet_queue_seconds{{- end }}
