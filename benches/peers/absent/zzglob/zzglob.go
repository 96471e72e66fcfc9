// Package zzglob stands in for the library of that path where the Go module proxy does not have it. The Buildkite agent
// uses it for artifact uploads, keys of caches and `if_changed` of pipeline uploads; the jobs of the comparison do none
// of these, and whatever would is told that it cannot.
package zzglob

import (
	"context"
	"errors"
	"io/fs"
)

var errAbsent = errors.New("zzglob: this build has no glob library")

// Pattern is never made: Parse fails.
type Pattern struct{}

// ParseOption and GlobOption are there for the signatures.
type ParseOption struct{}

// GlobOption is there for the signatures.
type GlobOption struct{}

// Parse always fails.
func Parse(string, ...ParseOption) (*Pattern, error) { return nil, errAbsent }

// Match matches nothing.
func (*Pattern) Match(string) bool { return false }

// Glob always fails.
func (*Pattern) Glob(fs.WalkDirFunc, ...GlobOption) error { return errAbsent }

// MultiGlob always fails if there is anything to find.
func MultiGlob(_ context.Context, patterns []*Pattern, _ fs.WalkDirFunc, _ ...GlobOption) error {
	if len(patterns) == 0 {
		return nil
	}
	return errAbsent
}

// ExpandTilde changes nothing.
func ExpandTilde(bool) ParseOption { return ParseOption{} }

// WalkIntermediateDirs changes nothing.
func WalkIntermediateDirs(bool) GlobOption { return GlobOption{} }

// TraverseSymlinks changes nothing.
func TraverseSymlinks(bool) GlobOption { return GlobOption{} }
