package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/layerfs/layerfs/fs"
	"github.com/layerfs/layerfs/internal/control"
)

func cmdStatus(args []string) error {
	c := newCommand("status", true)
	if done, err := c.parse(args, 1, 1); done || err != nil {
		return err
	}
	status, err := statusOf(c.Arg(0))
	if err != nil {
		return err
	}
	if c.json {
		return printJSON(status)
	}
	return printFields(status)
}

func statusOf(mountpoint string) (status json.RawMessage, err error) {
	if live, ok := kernelMount(mountpoint); ok {
		return json.Marshal(kernelStatus(live))
	}
	return status, control.Call(mountpoint, "status", nil, &status)
}

func cmdBranches(args []string) error {
	c := newCommand("branches", true)
	if done, err := c.parse(args, 1, 1); done || err != nil {
		return err
	}
	list, err := branchesOf(c.Arg(0))
	if err != nil {
		return err
	}
	if c.json {
		return printJSON(list)
	}
	for _, b := range list {
		fmt.Printf("%d  %s=%s   (%s)\n", b.Index, b.Path, b.Mode, describe(b))
	}
	return nil
}

func branchesOf(mountpoint string) ([]fs.BranchInfo, error) {
	if live, ok := kernelMount(mountpoint); ok {
		return kernelBranches(live)
	}
	var list []fs.BranchInfo
	return list, control.Call(mountpoint, "branches", nil, &list)
}

func describe(b fs.BranchInfo) string {
	dialect := b.Dialect
	if dialect == "" {
		dialect = "any dialect"
	}
	return fmt.Sprintf("%s, %d copied up, %d in use", dialect, b.CopyUps, b.InUse)
}

func cmdTrace(args []string) error {
	c := newCommand("trace", true)
	if done, err := c.parse(args, 2, 2); done || err != nil {
		return err
	}
	trace, err := traceOf(c.Arg(0), inMount(c.Arg(0), c.Arg(1)))
	if err != nil {
		return err
	}
	if c.json {
		return printJSON(trace)
	}
	for _, line := range trace.Lines() {
		fmt.Println(line)
	}
	return nil
}

func traceOf(mountpoint, path string) (trace fs.Trace, err error) {
	if live, ok := kernelMount(mountpoint); ok {
		return kernelTrace(live, path)
	}
	return trace, control.Call(mountpoint, "trace", path, &trace)
}

// inMount returns path relative to the root of the mount. People also give
// the path as it is outside.
func inMount(mountpoint, path string) string {
	abs, err := absolute(mountpoint)
	if err != nil {
		return path
	}
	for _, root := range []string{filepath.Clean(mountpoint), abs} {
		if rest, ok := strings.CutPrefix(filepath.Clean(path), root); ok && filepath.IsAbs(root) && (rest == "" || rest[0] == '/') {
			return strings.TrimPrefix(rest, "/")
		}
	}
	return path
}

func printJSON(v any) error {
	enc := json.NewEncoder(os.Stdout)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// printFields prints a flat JSON object, one field per line, in its order.
func printFields(object json.RawMessage) error {
	dec := json.NewDecoder(bytes.NewReader(object))
	dec.UseNumber()
	if _, err := dec.Token(); err != nil { // the opening brace
		return err
	}
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			return err
		}
		var value any
		if err := dec.Decode(&value); err != nil {
			return err
		}
		fmt.Printf("%-14s %v\n", fmt.Sprint(key)+":", value)
	}
	return nil
}
