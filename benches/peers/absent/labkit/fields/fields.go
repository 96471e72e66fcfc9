// Package fields stands in for names of log fields, where the Go module proxy does not have the module.
package fields

// Names of fields.
const (
	DurationS      = "duration_s"
	HTTPStatusCode = "http_status_code"
)

// Variant is what a field is called now.
type Variant struct{ Standard string }

// Deprecated has no entries: every field keeps its name.
var Deprecated = map[string]Variant{}

// VariantVersion has no entries.
var VariantVersion = map[string]int{}
