// Package gracefulexitcmd: see package client.
package gracefulexitcmd

import (
	"context"
	"os/exec"
	"time"
)

// New is a plain command: no step comes here.
func New(ctx context.Context, _ time.Duration, name string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, name, args...)
}
