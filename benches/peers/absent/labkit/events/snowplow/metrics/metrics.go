// Package metrics: see package snowplow.
package metrics

// CollectorOption is there for the signatures.
type CollectorOption struct{}

// WithCollectorNamespace changes nothing.
func WithCollectorNamespace(string) CollectorOption { return CollectorOption{} }

// WithCollectorBatchDeliveryDurationBuckets changes nothing.
func WithCollectorBatchDeliveryDurationBuckets([]float64) CollectorOption { return CollectorOption{} }
