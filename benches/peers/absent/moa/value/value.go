// Package value: see package moa. There are no values.
package value

import (
	"errors"
	"iter"
)

// Kind is what kind of value it is.
type Kind string

// The kinds that GitLab Runner names.
const (
	NullKind   Kind = "null"
	StringKind Kind = "string"
	NumberKind Kind = "number"
	BoolKind   Kind = "bool"
	ArrayKind  Kind = "array"
	ObjectKind Kind = "object"
)

// Errors that GitLab Runner names.
var (
	ErrAttributeNotFound = errors.New("attribute not found")
	ErrInvalidKey        = errors.New("invalid key")
)

// Value holds nothing.
type Value struct{}

// Mapper is what an object is made of.
type Mapper interface {
	All() iter.Seq2[Value, Value]
	Attr(string) (Value, error)
	Get(Value) (Value, error)
	Keys() iter.Seq[Value]
	Len() int
	Values() iter.Seq[Value]
	WithMarks(uint16) Mapper
}

// Kind is null.
func (Value) Kind() Kind { return NullKind }

// String is empty.
func (Value) String() string { return "" }

// WithMarks changes nothing.
func (v Value) WithMarks(uint16) Value { return v }

// HasMarks is never so.
func (Value) HasMarks(uint16) bool { return false }

// Null holds nothing.
func Null() Value { return Value{} }

// String holds nothing.
func String(string) Value { return Value{} }

// Object holds nothing.
func Object(Mapper) Value { return Value{} }
