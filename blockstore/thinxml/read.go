package thinxml

import "io"

const (
	// maxDefMemory bounds what defs occupy, in bytes: some 16 million ranges.
	maxDefMemory = 512 << 20
	defMemory    = 256 // of a def without ranges: its name, its place in the map
	rangeMemory  = 32  // of a Range

	// maxExpanded bounds the ranges that all refs together stand for. Otherwise
	// a small file could keep its reader busy for ever.
	maxExpanded = 1 << 30
)

// Visitor receives what Read reads: the superblock, then for each device the
// device, its mappings in ascending order, and its end.
//
// What it is given has been checked (see the package's documentation), except
// that the number of a device's mappings is known to be right only at its end.
type Visitor interface {
	Superblock(Superblock) error
	Device(Device) error
	Map(Range) error // as it stands in the input; adjacent ones are not merged for you
	EndDevice() error
}

// Read reads the XML of a whole pool from r.
//
// An error of the visitor ends the reading and is returned as it is, and so is
// one of r. All others are of class errs.Corrupt and name the line. A visitor
// may thus have received a part of the metadata when Read fails.
func Read(r io.Reader, v Visitor) error {
	p := &parser{scanner: newScanner(r), visitor: v, defs: map[string][]Range{}, ids: map[uint32]uint64{}}
	return p.document()
}

type parser struct {
	*scanner
	visitor Visitor
	sb      Superblock
	ids     map[uint32]uint64 // which device ids are taken: 64 of them in each value
	values  values            // of the element being parsed

	defs      map[string][]Range
	defBytes  int
	refRanges int // how many ranges refs have stood for so far
}

func (p *parser) document() error {
	t, err := p.next(false)
	if err == io.EOF {
		return fail(p.line, "no <superblock>: the input is empty")
	}
	if err != nil {
		return err
	}
	if err := p.superblock(t); err != nil {
		return err
	}
	t, err = p.next(false)
	if err == nil {
		return fail(t.line, "<%s> after the end of <superblock>", clip(t.name))
	}
	if err != io.EOF {
		return err
	}
	return nil
}

// children has each element inside e, which t begins, parsed by child, which
// gets to see beginnings only.
func (p *parser) children(e *element, t tag, child func(tag) error) error {
	if t.empty {
		return nil
	}
	begun := t.line
	for {
		t, err := p.next(true)
		if err == io.EOF {
			return fail(p.line, "the input ends inside the <%s> of line %d: it is truncated", e.name, begun)
		}
		if err != nil {
			return err
		}
		if !t.closing {
			err = child(t)
		} else if string(t.name) == e.name {
			return nil
		} else {
			err = fail(t.line, "</%s> inside <%s>", clip(t.name), e.name)
		}
		if err != nil {
			return err
		}
	}
}

// misplaced is the error for an element that has no place inside e.
func misplaced(e *element, t tag) error {
	for _, known := range []*element{&superblockElement, &deviceElement, &singleElement, &rangeElement, &defElement, &refElement} {
		if known.name == string(t.name) {
			return fail(t.line, "<%s> inside <%s>, where it has no place", known.name, e.name)
		}
	}
	return fail(t.line, "unknown element <%s> inside <%s>", clip(t.name), e.name)
}

// leaf parses an element that has no others inside.
func (p *parser) leaf(e *element, t tag) error {
	if err := e.parse(t, &p.values); err != nil {
		return err
	}
	return p.children(e, t, func(t tag) error { return misplaced(e, t) })
}

func (p *parser) superblock(t tag) error {
	e := &superblockElement
	if t.closing || string(t.name) != e.name {
		return fail(t.line, "the input begins with <%s>: must be <superblock>", clip(t.name))
	}
	if err := e.parse(t, &p.values); err != nil {
		return err
	}
	n := &p.values.number
	p.sb = Superblock{
		UUID: p.values.text, Time: uint32(n[1]), Transaction: n[2],
		Flags: uint32(n[3]), Version: uint32(n[4]),
		DataBlockSize: uint32(n[5]), DataBlocks: n[6],
	}
	if err := p.sb.check(); err != nil {
		return fail(t.line, "<superblock>: %w", err)
	}
	if err := p.visitor.Superblock(p.sb); err != nil {
		return err
	}
	return p.children(e, t, func(t tag) error {
		switch string(t.name) {
		case deviceElement.name:
			return p.device(t)
		case defElement.name:
			return p.def(t)
		}
		return misplaced(e, t)
	})
}

func (p *parser) device(t tag) error {
	e := &deviceElement
	if err := e.parse(t, &p.values); err != nil {
		return err
	}
	n := &p.values.number
	d := Device{
		ID: uint32(n[0]), MappedBlocks: n[1], Transaction: n[2],
		CreationTime: uint32(n[3]), SnapTime: uint32(n[4]),
	}
	if err := p.sb.checkDevice(d); err != nil {
		return fail(t.line, "<device>: %w", err)
	}
	if bit := uint64(1) << (d.ID % 64); p.ids[d.ID/64]&bit == 0 {
		p.ids[d.ID/64] |= bit
	} else {
		return fail(t.line, "device %d twice", d.ID)
	}
	if err := p.visitor.Device(d); err != nil {
		return err
	}
	var done progress
	if err := p.children(e, t, func(t tag) error { return p.deviceChild(t, &done) }); err != nil {
		return err
	}
	if err := done.finish(d); err != nil {
		return fail(p.line, "%w", err)
	}
	return p.visitor.EndDevice()
}

func (p *parser) deviceChild(t tag, done *progress) error {
	if string(t.name) == refElement.name {
		return p.ref(t, done)
	}
	r, err := p.mapping(&deviceElement, t, done)
	if err != nil {
		return err
	}
	return p.visitor.Map(r)
}

// mapping parses a mapping inside e.
func (p *parser) mapping(e *element, t tag, done *progress) (Range, error) {
	var r Range
	line, n := t.line, &p.values.number
	switch string(t.name) {
	case singleElement.name:
		if err := p.leaf(&singleElement, t); err != nil {
			return r, err
		}
		r = Range{n[0], n[1], 1, uint32(n[2])}
	case rangeElement.name:
		if err := p.leaf(&rangeElement, t); err != nil {
			return r, err
		}
		r = Range{n[0], n[1], n[2], uint32(n[3])}
	default:
		return r, misplaced(e, t)
	}
	if err := done.add(&p.sb, r); err != nil {
		return r, fail(line, "%w", err)
	}
	return r, nil
}

// def remembers a list of mappings, its runs merged.
func (p *parser) def(t tag) error {
	e := &defElement
	if err := e.parse(t, &p.values); err != nil {
		return err
	}
	name := p.values.text
	if _, ok := p.defs[name]; ok {
		return fail(t.line, "<def name=%q> twice", name)
	}
	if err := p.charge(t.line, defMemory); err != nil {
		return err
	}
	var ranges []Range
	var done progress
	err := p.children(e, t, func(t tag) error {
		line := t.line
		r, err := p.mapping(e, t, &done)
		if err != nil {
			return err
		}
		if last := len(ranges) - 1; last >= 0 && r.continues(ranges[last]) {
			ranges[last].Length += r.Length
			return nil
		}
		ranges = append(ranges, r)
		return p.charge(line, rangeMemory)
	})
	p.defs[name] = ranges
	return err
}

// charge accounts for memory that a def takes.
func (p *parser) charge(line, size int) error {
	if p.defBytes += size; p.defBytes > maxDefMemory {
		return fail(line, "the defs take more than %d MiB", maxDefMemory>>20)
	}
	return nil
}

// ref passes the mappings of a def on to the visitor.
func (p *parser) ref(t tag, done *progress) error {
	line := t.line
	if err := p.leaf(&refElement, t); err != nil {
		return err
	}
	name := p.values.text
	ranges, ok := p.defs[name]
	if !ok {
		return fail(line, "<ref name=%q>: no <def> of that name comes before it", name)
	}
	if p.refRanges += len(ranges); p.refRanges > maxExpanded {
		return fail(line, "<ref name=%q>: all refs together stand for more than %d mappings", name, maxExpanded)
	}
	for _, r := range ranges {
		if err := done.add(&p.sb, r); err != nil {
			return fail(line, "<ref name=%q>: %w", name, err)
		}
		if err := p.visitor.Map(r); err != nil {
			return err
		}
	}
	return nil
}
