module gitlab.com/gitlab-org/labkit/v2

go 1.23

require github.com/prometheus/client_golang v1.24.1
