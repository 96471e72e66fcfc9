// Package api: see package client.
package api

// DefaultSocketPath is nowhere.
func DefaultSocketPath() string { return "" }
