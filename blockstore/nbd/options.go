package nbd

import (
	"fmt"
	"slices"
	"strings"
)

// list answers LIST.
func (h *haggle) list(opt option) error {
	names, err := h.srv.registry.exports.List()
	if err != nil {
		return refuse(repErrPlatform, "list exports: %v", err)
	}
	for _, name := range names {
		if len(name) > maxString {
			continue // it could not be asked for either
		}
		data := be.AppendUint32(nil, uint32(len(name)))
		data = append(append(data, name...), description...)
		if err := h.reply(opt, repServer, data); err != nil {
			return err
		}
	}
	return nil
}

// exportName serves EXPORT_NAME, which knows no errors: what cannot be had
// ends the connection.
func (h *haggle) exportName(opt option) error {
	if opt.data == nil || len(opt.data) > maxString {
		return fmt.Errorf("nbd: EXPORT_NAME with a name of more than %d bytes", maxString)
	}
	if err := h.use(string(opt.data)); err != nil {
		return fmt.Errorf("nbd: EXPORT_NAME: %w", err)
	}
	h.enter()
	b := be.AppendUint64(nil, h.size)
	b = be.AppendUint16(b, h.flags())
	if !h.noZeroes {
		b = append(b, make([]byte, 124)...)
	}
	_, err := h.net.Write(b)
	return err
}

// info answers INFO and GO up to the ACK.
func (h *haggle) info(opt option) error {
	f := fields{data: opt.data}
	name := f.str()
	wanted := make([]uint16, f.uint16())
	for i := range wanted {
		wanted[i] = f.uint16()
	}
	if f.bad || len(f.data) > 0 {
		return refuse(repErrInvalid, "the data of option %d is malformed", opt.id)
	}
	if err := h.use(name); err != nil {
		return err
	}
	if opt.id == optGo {
		h.enter()
	}
	return h.sendInfo(opt, wanted)
}

// sendInfo tells the size and the flags, the sizes of requests whether asked
// for or not, as qemu-nbd does, and the texts on demand.
func (h *haggle) sendInfo(opt option, wanted []uint16) error {
	export := be.AppendUint16(nil, infoExport)
	export = be.AppendUint64(export, h.size)
	export = be.AppendUint16(export, h.flags())

	sizes := be.AppendUint16(nil, infoBlockSize)
	sizes = be.AppendUint32(sizes, 1)
	sizes = be.AppendUint32(sizes, preferred(h.exp.BlockSize()))
	sizes = be.AppendUint32(sizes, maxPayload)

	replies := [][]byte{export, sizes}
	if slices.Contains(wanted, infoName) {
		replies = append(replies, append(be.AppendUint16(nil, infoName), h.exp.name...))
	}
	if slices.Contains(wanted, infoDescription) {
		replies = append(replies, append(be.AppendUint16(nil, infoDescription), description...))
	}
	for _, data := range replies {
		if err := h.reply(opt, repInfo, data); err != nil {
			return err
		}
	}
	return nil
}

// preferred is the block size as proto.md "Size constraints" wants it: a
// power of two from 512 to the maximum payload.
func preferred(block int) uint32 {
	return uint32(min(max(block&-block, 512), maxPayload))
}

// flags are the transmission flags. MULTI_CONN is right because connections
// share one Export, whose Flush covers what all of them wrote.
func (h *haggle) flags() uint16 {
	flags := uint16(flagHasFlags | flagFlush | flagFUA | flagTrim | flagWriteZeroes | flagFastZero | flagCanMultiConn)
	if h.structured {
		flags |= flagDF
	}
	return flags
}

// enter settles what holds in the transmission phase. A context counts only
// for the export that it was selected for.
func (h *haggle) enter() {
	h.status = h.context != "" && h.context == h.exp.name
}

// metaContext answers LIST_META_CONTEXT and SET_META_CONTEXT up to the ACK.
func (h *haggle) metaContext(opt option) error {
	set := opt.id == optSetMetaContext
	if set {
		h.context = "" // whatever comes of this one
		if !h.structured {
			return refuse(repErrInvalid, "metadata contexts need structured replies")
		}
	}
	f := fields{data: opt.data}
	name := f.str()
	queries := make([]string, 0, 1)
	for range f.uint32() {
		if f.bad {
			break
		}
		queries = append(queries, f.str())
	}
	if f.bad || len(f.data) > 0 {
		return refuse(repErrInvalid, "the data of option %d is malformed", opt.id)
	}
	if err := h.use(name); err != nil {
		return err
	}
	if !selected(queries, set) {
		return nil
	}
	id := uint32(0) // without meaning in a list
	if set {
		h.context = h.exp.name
		id = contextID
	}
	return h.reply(opt, repMetaContext, append(be.AppendUint32(nil, id), contextName...))
}

// selected says whether the queries ask for base:allocation, see proto.md
// "The base: metadata namespace": a list may use the namespace alone or no
// query for "all".
func selected(queries []string, set bool) bool {
	if len(queries) == 0 {
		return !set
	}
	return slices.ContainsFunc(queries, func(q string) bool {
		return q == contextName || !set && strings.TrimPrefix(q, "base:") == "" && q != ""
	})
}
