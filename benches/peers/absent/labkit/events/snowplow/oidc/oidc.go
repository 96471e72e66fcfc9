// Package oidc: see package snowplow.
package oidc

// Option is there for the signatures.
type Option struct{}

// Source gives no tokens.
type Source struct{}

// WithSkipIfUnsupportedCloud changes nothing.
func WithSkipIfUnsupportedCloud(bool) Option { return Option{} }

// NewSource gives no tokens.
func NewSource(...Option) *Source { return nil }
