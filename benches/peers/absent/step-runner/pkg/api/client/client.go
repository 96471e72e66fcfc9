// Package client stands in for the step runner of that module, where the Go module proxy does not have it. GitLab Runner
// uses it for jobs with `run:` and behind a feature flag that is off; jobs with `script:` never get here.
package client

import "time"

// State is how far a job of the step runner is.
type State int

// The states that GitLab Runner names.
const (
	StateUnknown State = iota
	StateSuccess
	StateCancelled
)

// String says nothing.
func (State) String() string { return "" }

// ErrorKind is why one failed.
type ErrorKind int

// The kinds that GitLab Runner names.
const (
	ErrorUnknown ErrorKind = iota
	ErrorInternal
	ErrorStepFailure
	ErrorCancelled
	ErrorTimeout
)

// Status is what became of one.
type Status struct {
	State     State
	ErrorKind ErrorKind
	Message   string
}

// Variable is one of a request.
type Variable struct {
	Key, Value   string
	File, Masked bool
}

// RunRequest asks for steps.
type RunRequest struct {
	Id                string
	Timeout           *time.Duration
	WorkDir, BuildDir string
	Env               map[string]string
	Steps             string
	Variables         []Variable
}
