// Package ast: see package moa. There are no expressions.
package ast

// Expr is an expression.
type Expr interface {
	Walk(Visitor) (Expr, error)
}

// Visitor goes through one.
type Visitor interface {
	Enter(Expr) (Visitor, error)
	Exit(Expr) (Expr, error)
}

// Template is an expression in a text.
type Template struct{}

// Walk finds nothing.
func (t *Template) Walk(Visitor) (Expr, error) { return t, nil }
