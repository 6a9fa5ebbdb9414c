package thinxml

import (
	"bytes"
	"fmt"
	"io"

	"github.com/layerfs/layerfs/internal/errs"
)

const (
	bufSize = 64 << 10

	// maxTag is how long a tag may be, in bytes. The longest of the format has
	// less than 300.
	maxTag = 4096

	// maxStall is how often an io.Reader may return nothing in a row.
	maxStall = 100
)

// scanner splits the input into tags.
type scanner struct {
	in       io.Reader
	buf      []byte
	pos, end int   // what of buf is not scanned yet
	err      error // what ended the input
	line     int   // of buf[pos]
	begun    bool  // something of the input has been scanned
}

// tag is an element's beginning, its end, or both. The slices are valid until
// the next one is scanned.
type tag struct {
	name, attrs []byte
	closing     bool // </name>
	empty       bool // <name/>
	line        int
}

func newScanner(r io.Reader) *scanner {
	return &scanner{in: r, buf: make([]byte, bufSize), line: 1}
}

// fail returns an error about the input at line.
func fail(line int, format string, args ...any) error {
	return errs.New(errs.Corrupt, "line %d: %w", line, fmt.Errorf(format, args...))
}

// next returns the next tag, or io.EOF where there is none. Text before it is
// ignored inside the root element, and must be white space outside.
func (s *scanner) next(inRoot bool) (tag, error) {
	for {
		if err := s.skipText(inRoot); err != nil {
			return tag{}, err
		}
		first := !s.begun
		s.begun = true
		switch {
		case s.sees("<!--"):
			if err := s.skipComment(); err != nil {
				return tag{}, err
			}
		case s.sees("<!"):
			return tag{}, fail(s.line, "<! begins neither a comment nor an element: DOCTYPE and CDATA are not part of the format")
		case s.sees("<?"):
			// Only a declaration, which comes first. What it says does not matter:
			// all that is read is ASCII.
			if !first || !s.sees("<?xml ") {
				return tag{}, fail(s.line, "<? begins neither a declaration nor an element")
			}
			if _, err := s.cut(); err != nil {
				return tag{}, err
			}
		default:
			return s.element()
		}
	}
}

// fill reads more input behind what is not scanned yet.
func (s *scanner) fill() error {
	if s.pos > 0 {
		s.end = copy(s.buf, s.buf[s.pos:s.end])
		s.pos = 0
	}
	for range maxStall {
		if s.err != nil {
			return s.err
		}
		n, err := s.in.Read(s.buf[s.end:])
		s.end += n
		s.err = err
		if n > 0 {
			return nil
		}
	}
	return io.ErrNoProgress
}

// more is fill where the input must not end.
func (s *scanner) more() error {
	err := s.fill()
	if err == io.EOF {
		return fail(s.line, "the input ends in the middle: it is truncated")
	}
	return err
}

// take consumes n bytes.
func (s *scanner) take(n int) {
	s.line += bytes.Count(s.buf[s.pos:s.pos+n], []byte{'\n'})
	s.pos += n
}

// sees reports whether the rest of the input begins with what.
func (s *scanner) sees(what string) bool {
	for s.end-s.pos < len(what) {
		if s.fill() != nil { // whoever needs more will say so
			return false
		}
	}
	return string(s.buf[s.pos:s.pos+len(what)]) == what
}

// skipText goes on to the next <.
func (s *scanner) skipText(inRoot bool) error {
	for {
		text := s.buf[s.pos:s.end]
		at := bytes.IndexByte(text, '<')
		if at >= 0 {
			text = text[:at]
		}
		if len(text) > 0 {
			s.begun = true
			if !inRoot {
				if bad := bytes.TrimLeft(text, " \t\r\n"); len(bad) > 0 {
					s.take(len(text) - len(bad))
					return fail(s.line, "text outside of <superblock>: this is not the output of thin_dump")
				}
			}
			s.take(len(text))
		}
		if at >= 0 {
			return nil
		}
		if err := s.fill(); err != nil {
			return err
		}
	}
}

// skipComment skips a comment of any length.
func (s *scanner) skipComment() error {
	line := s.line
	s.take(len("<!--"))
	for {
		if at := bytes.Index(s.buf[s.pos:s.end], []byte("-->")); at >= 0 {
			s.take(at + len("-->"))
			return nil
		}
		s.take(max(0, s.end-s.pos-len("--"))) // the rest may begin the end
		if err := s.fill(); err == io.EOF {
			return fail(line, "this comment has no end: the input is truncated")
		} else if err != nil {
			return err
		}
	}
}

// cut consumes what stands between the next < and its >.
func (s *scanner) cut() ([]byte, error) {
	var quote byte
	for i := 1; i < maxTag; i++ {
		if s.pos+i == s.end {
			if err := s.more(); err != nil {
				return nil, err
			}
		}
		switch c := s.buf[s.pos+i]; {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		case c == '>':
			body := s.buf[s.pos+1 : s.pos+i]
			s.take(i + 1)
			return body, nil
		}
	}
	return nil, fail(s.line, "a tag of more than %d bytes", maxTag)
}

// element scans a tag.
func (s *scanner) element() (tag, error) {
	t := tag{line: s.line}
	body, err := s.cut()
	if err != nil {
		return t, err
	}
	if rest, ok := bytes.CutPrefix(body, []byte{'/'}); ok {
		t.closing, body = true, rest
	} else if rest, ok := bytes.CutSuffix(body, []byte{'/'}); ok {
		t.empty, body = true, rest
	}
	n := 0
	for n < len(body) && !isSpace(body[n]) {
		n++
	}
	t.name, t.attrs = body[:n], body[n:]
	if n == 0 {
		return t, fail(t.line, "< without the name of an element")
	}
	if t.closing && len(trimSpace(t.attrs)) > 0 {
		return t, fail(t.line, "</%s> with attributes", clip(t.name))
	}
	return t, nil
}

// attribute splits the first attribute off b, which begins with no white space.
func (t *tag) attribute(b []byte) (name, value, rest []byte, err error) {
	eq := bytes.IndexByte(b, '=')
	if eq < 0 {
		return nil, nil, nil, fail(t.line, "<%s>: %q is not of the form name=\"value\"", clip(t.name), clip(b))
	}
	name = b[:eq]
	for len(name) > 0 && isSpace(name[len(name)-1]) {
		name = name[:len(name)-1]
	}
	b = trimSpace(b[eq+1:])
	if len(b) == 0 || b[0] != '"' && b[0] != '\'' {
		return nil, nil, nil, fail(t.line, "<%s>: the value of attribute %q is not in quotes", clip(t.name), clip(name))
	}
	end := 1 + bytes.IndexByte(b[1:], b[0])
	if end == 0 {
		return nil, nil, nil, fail(t.line, "<%s>: the value of attribute %q does not end", clip(t.name), clip(name))
	}
	value, rest = b[1:end], b[end+1:]
	if len(rest) > 0 && !isSpace(rest[0]) {
		return nil, nil, nil, fail(t.line, "<%s>: no space after attribute %q", clip(t.name), clip(name))
	}
	return name, value, rest, nil
}

func isSpace(c byte) bool { return c == ' ' || c == '\n' || c == '\t' || c == '\r' }

func trimSpace(b []byte) []byte {
	for len(b) > 0 && isSpace(b[0]) {
		b = b[1:]
	}
	return b
}

// clip keeps what is quoted in an error short.
func clip(b []byte) string {
	const most = 40
	if len(b) > most {
		return string(b[:most]) + "…"
	}
	return string(b)
}
