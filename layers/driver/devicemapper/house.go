package devicemapper

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/internal/sys"
	"github.com/layerfs/layerfs/kernelbackend/dm"
	"github.com/layerfs/layerfs/layers/driver"
	"github.com/layerfs/layerfs/layers/driver/devices"
)

// House implements devices.House for pools of loop files.
type House struct{}

// Data implements devices.House.
func (House) Data(home string) string { return filepath.Join(home, "devicemapper", "data") }

func metadataOf(home string) string { return filepath.Join(home, "devicemapper", "metadata") }

// Export implements devices.House.
func (House) Export(home string, state driver.State, xml string) ([]devices.Tenant, error) {
	p, err := Open(home, state, devices.DefaultOptions())
	if err != nil {
		return nil, err
	}
	defer p.Close()
	if p.kind != loopKind {
		return nil, errs.New(errs.Unsupported, "only a pool of loop files can move: this one is made of other devices")
	}
	if err := p.Stop(); err != nil {
		return nil, err
	}
	var list []devices.Tenant
	err = state.View(func(t driver.Records) error {
		return t.Each(devicePrefix, func(key string, value json.RawMessage) error {
			name := strings.TrimPrefix(key, devicePrefix)
			var r record
			if err := json.Unmarshal(value, &r); err != nil {
				return err
			}
			list = append(list, devices.Tenant{Name: name, ID: r.ID, Size: r.Size})
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	return list, tool("thin_dump", "-o", xml, metadataOf(home))
}

func tool(name string, args ...string) error {
	if err := sys.Step("exec " + name); err != nil {
		return err
	}
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return errs.New(errs.Unsupported, "%s is not installed (Debian package thin-provisioning-tools)", name)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", name, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// superblock is how the XML of a pool begins.
var superblock = regexp.MustCompile(`<superblock[^>]*>`)

// attribute returns a number of the superblock in the XML.
func attribute(head []byte, name string) (uint64, error) {
	m := regexp.MustCompile(`\s` + name + `="(\d+)"`).FindSubmatch(superblock.Find(head))
	if m == nil {
		return 0, errs.New(errs.Corrupt, "the metadata has no %s", name)
	}
	return strconv.ParseUint(string(m[1]), 10, 64)
}

// Import implements devices.House.
func (h House) Import(home, data, xml string, tenants []devices.Tenant) (map[string]any, error) {
	dir := filepath.Dir(h.Data(home))
	if err := sys.MakeDirs(dir, 0700); err != nil {
		return nil, err
	}
	text, err := os.ReadFile(xml)
	if err != nil {
		return nil, err
	}
	txid, err := attribute(text, "transaction")
	if err != nil {
		return nil, err
	}
	sectors, err := attribute(text, "data_block_size")
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(h.Data(home)); errors.Is(err, os.ErrNotExist) {
		if err := restore(metadataOf(home), xml, int64(len(text))); err != nil {
			return nil, err
		}
		if err := sys.RenamePath(data, h.Data(home)); err != nil {
			return nil, err
		}
	}
	next := uint32(0)
	records := map[string]any{}
	for _, t := range tenants {
		next = max(next, t.ID+1)
		records[devicePrefix+t.Name] = record{ID: t.ID, Size: t.Size}
	}
	records[poolKey] = made{
		Kind: loopKind, Data: h.Data(home), Metadata: metadataOf(home),
		Block: int64(sectors) * dm.Sector, Txid: txid, Next: next, Marked: true,
	}
	return records, nil
}

// restore makes a metadata file of XML of that many bytes, with as much room as a new
// pool would have, more when the XML asks for it.
func restore(path, xml string, size int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0600)
	if err != nil {
		return err
	}
	room := slices.Max([]int64{devices.DefaultOptions().LoopMetadataSize, size})
	if err := errors.Join(f.Truncate(room), f.Close()); err != nil {
		return err
	}
	return tool("thin_restore", "-i", xml, "-o", path)
}
