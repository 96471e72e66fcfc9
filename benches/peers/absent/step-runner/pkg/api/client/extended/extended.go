// Package extended: see package client.
package extended

import (
	"context"
	"errors"
	"io"

	"gitlab.com/gitlab-org/step-runner/pkg/api/client"
)

var errAbsent = errors.New("step-runner: this build runs no steps")

// FollowOutput is where output goes.
type FollowOutput struct{ Logs io.Writer }

// Client is never made.
type Client struct{}

// New always fails.
func New(any) (*Client, error) { return nil, errAbsent }

// CloseConn does nothing.
func (*Client) CloseConn() error { return nil }

// Cancel always fails.
func (*Client) Cancel(context.Context, string) error { return errAbsent }

// RunAndFollow always fails.
func (*Client) RunAndFollow(context.Context, *client.RunRequest, *FollowOutput) (client.Status, error) {
	return client.Status{}, errAbsent
}
