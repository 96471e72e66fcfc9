// Package snowplow stands in for the sender of billing events, where the Go module proxy does not have the module. It is
// off unless a runner's settings name a collector.
package snowplow

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"gitlab.com/gitlab-org/labkit/v2/events/snowplow/metrics"
	"gitlab.com/gitlab-org/labkit/v2/events/snowplow/oidc"
)

var errAbsent = errors.New("snowplow: this build sends no billing events")

// SendResult is what became of some events.
type SendResult struct {
	EventCount int
	StatusCode int
	Err        error
}

// SendCallback is told of them.
type SendCallback func(successes, failures []SendResult)

// Emitter is never made.
type Emitter struct{}

// Tracker is never made.
type Tracker struct{}

// EmitterOption is there for the signatures.
type EmitterOption struct{}

// BillingEventRequiredInput is what an event must say.
type BillingEventRequiredInput struct {
	Category, EventType, Realm, UnitOfMeasure string
	Quantity                                  float64
}

// BillingEventOptionalInput is what it may say.
type BillingEventOptionalInput struct {
	Subject, DeploymentType, InstanceID, UniqueInstanceID   string
	ProjectID, NamespaceID, RootNamespaceID, OrganizationID int64
	Metadata                                                map[string]any
}

// WithCallback changes nothing.
func WithCallback(SendCallback) EmitterOption { return EmitterOption{} }

// WithTokenSource changes nothing.
func WithTokenSource(*oidc.Source) EmitterOption { return EmitterOption{} }

// WithMetricsCollectorOptions changes nothing.
func WithMetricsCollectorOptions(...metrics.CollectorOption) EmitterOption { return EmitterOption{} }

// NewEmitter always fails.
func NewEmitter(string, ...EmitterOption) (*Emitter, error) { return nil, errAbsent }

// Collector collects nothing.
func (*Emitter) Collector() prometheus.Collector { return prometheus.NewRegistry() }

// NewTracker always fails.
func NewTracker(string, *Emitter) (*Tracker, error) { return nil, errAbsent }

// TrackBillingEventWithOptionalInput always fails.
func (*Tracker) TrackBillingEventWithOptionalInput(BillingEventRequiredInput, BillingEventOptionalInput) error {
	return errAbsent
}

// Stop does nothing.
func (*Tracker) Stop() {}
