package thinxml

import (
	"math"
)

// attr is an attribute that an element has.
type attr struct {
	name     string
	max      uint64 // the largest number allowed
	optional bool
	fallback uint64 // what an absent optional one means
	text     bool   // not a number
}

// element is an element of the grammar.
type element struct {
	name  string
	attrs []attr
}

var (
	superblockElement = element{"superblock", []attr{
		{name: "uuid", text: true},
		{name: "time", max: math.MaxUint32},
		{name: "transaction", max: math.MaxUint64},
		{name: "flags", max: math.MaxUint32, optional: true},
		{name: "version", max: math.MaxUint32, optional: true, fallback: Version},
		{name: "data_block_size", max: math.MaxUint32},
		{name: "nr_data_blocks", max: math.MaxUint64},
		{name: "metadata_snap", max: math.MaxUint64, optional: true},
	}}
	deviceElement = element{"device", []attr{
		{name: "dev_id", max: math.MaxUint32},
		{name: "mapped_blocks", max: math.MaxUint64},
		{name: "transaction", max: math.MaxUint64},
		{name: "creation_time", max: math.MaxUint32},
		{name: "snap_time", max: math.MaxUint32},
	}}
	singleElement = element{"single_mapping", []attr{
		{name: "origin_block", max: math.MaxUint64},
		{name: "data_block", max: math.MaxUint64},
		{name: "time", max: math.MaxUint32},
	}}
	rangeElement = element{"range_mapping", []attr{
		{name: "origin_begin", max: math.MaxUint64},
		{name: "data_begin", max: math.MaxUint64},
		{name: "length", max: math.MaxUint64},
		{name: "time", max: math.MaxUint32},
	}}
	defElement = element{"def", []attr{{name: "name", text: true}}}
	refElement = element{"ref", []attr{{name: "name", text: true}}}
)

// values are those of an element's attributes, in the element's order.
type values struct {
	number [8]uint64
	text   string // of the one that is not a number
}

// parse reads the attributes of t into v.
func (e *element) parse(t tag, v *values) error {
	seen, guess := uint(0), 0
	for rest := trimSpace(t.attrs); len(rest) > 0; rest = trimSpace(rest) {
		var name, value []byte
		var err error
		if name, value, rest, err = t.attribute(rest); err != nil {
			return err
		}
		i := e.find(name, guess)
		if i < 0 {
			return fail(t.line, "<%s>: unknown attribute %q", e.name, clip(name))
		}
		if seen&(1<<i) != 0 {
			return fail(t.line, "<%s>: attribute %s twice", e.name, e.attrs[i].name)
		}
		seen |= 1 << i
		guess = i + 1
		if err := e.set(t, i, value, v); err != nil {
			return err
		}
	}
	for i, a := range e.attrs {
		if seen&(1<<i) != 0 {
			continue
		}
		if !a.optional {
			return fail(t.line, "<%s>: attribute %s is missing", e.name, a.name)
		}
		v.number[i] = a.fallback
	}
	return nil
}

// find returns the position of the attribute called name, or -1. The tools
// write attributes in order, so that it is most often the guess.
func (e *element) find(name []byte, guess int) int {
	if guess < len(e.attrs) && e.attrs[guess].name == string(name) {
		return guess
	}
	for i := range e.attrs {
		if e.attrs[i].name == string(name) {
			return i
		}
	}
	return -1
}

func (e *element) set(t tag, i int, value []byte, v *values) error {
	a := &e.attrs[i]
	if a.text {
		v.text = string(value)
		if err := checkText(a.name, v.text); err != nil {
			return fail(t.line, "<%s>: %w", e.name, err)
		}
		return nil
	}
	n, ok := number(value, a.max)
	if !ok {
		return fail(t.line, "<%s>: attribute %s is %q: must be a number from 0 to %d", e.name, a.name, clip(value), a.max)
	}
	v.number[i] = n
	return nil
}

// number reads a decimal number of at most most.
func number(b []byte, most uint64) (n uint64, ok bool) {
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		d := uint64(c - '0')
		if n > (most-d)/10 {
			return 0, false
		}
		n = 10*n + d
	}
	return n, len(b) > 0
}
