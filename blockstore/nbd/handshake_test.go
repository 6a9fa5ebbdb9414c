package nbd

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/internal/errs"
)

const errReset = syscall.ECONNRESET

const allFlags = flagHasFlags | flagFlush | flagFUA | flagTrim | flagWriteZeroes | flagFastZero | flagCanMultiConn

func two() *store {
	return newStore(map[string]*mem{"a": newMem(1 << 20), "b": newMem(1<<20 + 1)}, "a", "b")
}

func infoExportData(size uint64, flags uint16) string {
	return string(be.AppendUint16(be.AppendUint64([]byte{0, infoExport}, size), flags))
}

const infoSizes = "\x00\x03\x00\x00\x00\x01\x00\x01\x00\x00\x02\x00\x00\x00"

func TestOptions(t *testing.T) {
	s := two()
	s.fail["busy"] = errs.New(errs.Busy, "device busy is active on tuesday")
	s.fail["strange"] = errs.New(errs.Unsupported, "no such format here")
	s.fail["broken"] = fmt.Errorf("open broken: %w", syscall.EIO)
	ack := optReply{repAck, ""}
	long := strings.Repeat("n", maxString+1)
	for name, tc := range map[string]struct {
		id   uint32
		data []byte
		want []optReply
	}{
		"list":                {optList, nil, []optReply{{repServer, "\x00\x00\x00\x01a" + description}, {repServer, "\x00\x00\x00\x01b" + description}, ack}},
		"list with data":      {optList, []byte("x"), []optReply{{repErrInvalid, "option 3 takes no data"}}},
		"structured":          {optStructuredReply, nil, []optReply{ack}},
		"structured data":     {optStructuredReply, []byte("x"), []optReply{{repErrInvalid, "option 8 takes no data"}}},
		"starttls":            {5, nil, []optReply{{repErrUnsup, "option 5 is not supported"}}},
		"peek export":         {4, []byte("a"), []optReply{{repErrUnsup, "option 4 is not supported"}}},
		"extended headers":    {11, nil, []optReply{{repErrUnsup, "option 11 is not supported"}}},
		"unknown, much data":  {0xfeed, make([]byte, 1<<20), []optReply{{repErrUnsup, "option 65261 is not supported"}}},
		"go, much data":       {optGo, make([]byte, maxOption+1), []optReply{{repErrTooBig, "the option has more than 65536 bytes"}}},
		"info":                {optInfo, goData("b"), []optReply{{repInfo, infoExportData(1<<20+1, allFlags)}, {repInfo, infoSizes}, ack}},
		"info, all":           {optInfo, goData("a", infoName, infoDescription, infoBlockSize, 77), []optReply{{repInfo, infoExportData(1<<20, allFlags)}, {repInfo, infoSizes}, {repInfo, "\x00\x01a"}, {repInfo, "\x00\x02" + description}, ack}},
		"info, unknown":       {optInfo, goData("c"), []optReply{{repErrUnknown, `no device "c"`}}},
		"info, no default":    {optInfo, goData(""), []optReply{{repErrUnknown, "no default among 2 exports: name one"}}},
		"go, busy":            {optGo, goData("busy"), []optReply{{repErrPolicy, "device busy is active on tuesday"}}},
		"go, unsupported":     {optGo, goData("strange"), []optReply{{repErrPlatform, "no such format here"}}},
		"go, broken":          {optGo, goData("broken"), []optReply{{repErrUnknown, "open broken: input/output error"}}},
		"info, empty":         {optInfo, nil, []optReply{{repErrInvalid, "the data of option 6 is malformed"}}},
		"info, too short":     {optInfo, goData("a", 1, 2)[:8], []optReply{{repErrInvalid, "the data of option 6 is malformed"}}},
		"info, too long":      {optInfo, append(goData("a"), 0), []optReply{{repErrInvalid, "the data of option 6 is malformed"}}},
		"info, name past end": {optInfo, []byte("\x00\x00\x10\x00abc\x00\x00"), []optReply{{repErrInvalid, "the data of option 6 is malformed"}}},
		"info, huge name":     {optInfo, []byte("\xff\xff\xff\xffabc\x00\x00"), []optReply{{repErrInvalid, "the data of option 6 is malformed"}}},
		"info, long name":     {optInfo, goData(long), []optReply{{repErrInvalid, "the data of option 6 is malformed"}}},
		"info, longest name":  {optInfo, goData(long[1:]), []optReply{{repErrUnknown, fmt.Sprintf("no device %q", long[1:])[:maxString]}}},
		"info, NUL in name":   {optInfo, goData("a\x00"), []optReply{{repErrInvalid, "the data of option 6 is malformed"}}},
		"set before struct":   {optSetMetaContext, metaQuery("a", contextName), []optReply{{repErrInvalid, "metadata contexts need structured replies"}}},
		"list all contexts":   {optListMetaContext, metaQuery("a"), []optReply{{repMetaContext, "\x00\x00\x00\x00" + contextName}, ack}},
		"list base:":          {optListMetaContext, metaQuery("a", "x-y:z", "base:"), []optReply{{repMetaContext, "\x00\x00\x00\x00" + contextName}, ack}},
		"list others":         {optListMetaContext, metaQuery("a", "", "qemu:dirty-bitmap:b", "base:else"), []optReply{ack}},
		"list of unknown":     {optListMetaContext, metaQuery("c"), []optReply{{repErrUnknown, `no device "c"`}}},
		"list, malformed":     {optListMetaContext, append(str("a"), 0xff, 0xff, 0xff, 0xff), []optReply{{repErrInvalid, "the data of option 9 is malformed"}}},
	} {
		t.Run(name, func(t *testing.T) {
			_, path := serve(t, s)
			c := dial(t, path)
			c.greet(3)
			require.Equal(t, tc.want, c.option(tc.id, tc.data))
			require.Equal(t, []optReply{ack}, c.option(optAbort, nil), "out of step")
			c.closed()
		})
	}
}

// What SET_META_CONTEXT selects holds for the same export only, and until
// the next one, even a failed one.
func TestMetaContext(t *testing.T) {
	sel := optReply{repMetaContext, "\x00\x00\x00\x01" + contextName}
	ack := optReply{repAck, ""}
	for name, tc := range map[string]struct {
		queries [][]byte
		want    []optReply // to the last one
		works   bool
	}{
		"selected":      {[][]byte{metaQuery("a", contextName)}, []optReply{sel, ack}, true},
		"among others":  {[][]byte{metaQuery("a", "x:y", contextName)}, []optReply{sel, ack}, true},
		"nothing":       {[][]byte{metaQuery("a", contextName), metaQuery("a")}, []optReply{ack}, false},
		"namespace":     {[][]byte{metaQuery("a", "base:")}, []optReply{ack}, false},
		"other export":  {[][]byte{metaQuery("b", contextName)}, []optReply{sel, ack}, false},
		"no export":     {[][]byte{metaQuery("a", contextName), metaQuery("c", contextName)}, []optReply{{repErrUnknown, `no device "c"`}}, false},
		"malformed":     {[][]byte{metaQuery("a", contextName), {1}}, []optReply{{repErrInvalid, "the data of option 10 is malformed"}}, false},
		"once more":     {[][]byte{metaQuery("b", contextName), metaQuery("a", contextName)}, []optReply{sel, ack}, true},
		"never":         {},
		"bad then good": {[][]byte{{1}, metaQuery("a", contextName)}, []optReply{sel, ack}, true},
	} {
		t.Run(name, func(t *testing.T) {
			_, path := serve(t, two())
			c := dial(t, path)
			c.greet(3)
			c.option(optStructuredReply, nil)
			c.structured = true
			var got []optReply
			for _, q := range tc.queries {
				got = c.option(optSetMetaContext, q)
			}
			require.Equal(t, tc.want, got)
			replies := c.option(optGo, goData("a"))
			require.Equal(t, infoExportData(1<<20, allFlags|flagDF), replies[0].data)
			a := c.call(request{cmd: cmdBlockStatus, length: 512}, nil)
			require.Equal(t, tc.works, a.code == 0, a.text)
		})
	}
}

func TestExportName(t *testing.T) {
	_, path := serve(t, two())
	for _, flags := range []uint32{0, 1, 2, 3} {
		c := dial(t, path)
		c.greet(flags)
		c.write(optionBytes(optExportName, []byte("b")))
		want := infoExportData(1<<20+1, allFlags)[2:]
		if flags&flagNoZeroes == 0 {
			want += strings.Repeat("\x00", 124)
		}
		require.Equal(t, want, string(c.read(len(want))))
		require.Zero(t, c.call(request{cmd: cmdFlush, cookie: 3}, nil).code)
	}
	for _, name := range []string{"", "c", strings.Repeat("n", maxString+1), strings.Repeat("n", maxOption+1)} {
		c := dial(t, path)
		c.greet(3)
		c.write(optionBytes(optExportName, []byte(name)))
		c.closed()
	}
}

// The empty name is the only export, and one that is opened by both its
// names is opened once.
func TestDefaultExport(t *testing.T) {
	s, _ := single()
	_, path := serve(t, s)
	c := dial(t, path)
	c.greet(3)
	c.option(optStructuredReply, nil)
	c.option(optSetMetaContext, metaQuery("disk", contextName))
	replies := c.option(optGo, goData("", infoName))
	require.Contains(t, replies, optReply{repInfo, "\x00\x01disk"})
	c.structured = true
	require.Zero(t, c.call(request{cmd: cmdBlockStatus, length: 1}, nil).code, "the context is lost")
	require.Equal(t, 1, s.opened("disk"))

	s.fail["list"] = errors.New("no list today")
	c = dial(t, path)
	c.greet(3)
	require.Equal(t, []optReply{{repErrUnknown, "list exports: no list today"}}, c.option(optInfo, goData("")))
	require.Equal(t, []optReply{{repErrPlatform, "list exports: no list today"}}, c.option(optList, nil))
}

func TestHostileHandshake(t *testing.T) {
	_, path := serve(t, two())
	for name, tc := range map[string]struct {
		flags uint32
		send  []byte
	}{
		"unknown client flag":     {4, nil},
		"http":                    {3, []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")},
		"option before fixed":     {0, optionBytes(optList, nil)},
		"unknown before fixed":    {2, optionBytes(99, nil)},
		"abort, and no goodbye":   {3, nil},
		"end in the option":       {3, optionBytes(optGo, goData("a"))[:18]},
		"end in the huge payload": {3, append(be.AppendUint64(nil, magicOption), "\x00\x00\x00\x07\xff\xff\xff\xff data"...)},
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, path)
			c.greet(tc.flags)
			if tc.send != nil {
				c.write(tc.send)
			}
			if strings.Contains(name, "end") || strings.Contains(name, "abort") {
				c.Close()
				return
			}
			c.closed()
		})
	}
}

func TestTooManyOptions(t *testing.T) {
	_, path := serve(t, two())
	c := dial(t, path)
	c.greet(3)
	for range maxOptions {
		c.option(optStructuredReply, nil)
	}
	c.closed()
}

func TestHandshakeTimeout(t *testing.T) {
	s := New(two())
	s.patience = 50 * time.Millisecond
	path := serveOn(t, s)
	silent := dial(t, path)
	silent.greet(3)
	slow := dial(t, path)
	slow.greet(3)
	slow.write(optionBytes(optList, nil)[:9])
	silent.closed()
	slow.closed()

	c := connect(t, path, "a", true)
	time.Sleep(2 * s.patience)
	require.Zero(t, c.call(request{cmd: cmdFlush}, nil).code, "the handshake's deadline has outlived it")
}
