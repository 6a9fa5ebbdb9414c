package main

import (
	"strings"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/errs"
)

// branchModes are the modes of a br= branch.
var branchModes = map[string]branches.Mode{"rw": branches.RW, "ro": branches.RO, "rr": branches.RR}

// branchAttrs are what AUFS lets follow a mode.
var branchAttrs = []string{
	"wh", "nolwh", "moo", "coo_reg", "coo_all", "fhsm", "unpin",
	"icex", "icexsec", "icexsys", "icextr", "icexusr", "icexoth",
}

// parseBranches reads the value of br=.
func parseBranches(value string) ([]branches.Spec, error) {
	var out []branches.Spec
	for _, item := range splitPaths(value) {
		spec, err := parseBranch(item, len(out) == 0)
		if err != nil {
			return nil, err
		}
		out = append(out, spec)
	}
	if len(out) == 0 {
		return nil, errs.New(errs.Usage, "br=: no branch given")
	}
	return out, nil
}

// parseBranch reads DIR[=MODE[+ATTR]…]. As in AUFS the first branch is
// writable unless it says otherwise. What follows the last "=" is a mode
// unless it contains a slash: then it belongs to the directory's name.
func parseBranch(item string, first bool) (branches.Spec, error) {
	spec := branches.Spec{Path: item, Mode: branches.RO, Auto: true}
	if first {
		spec.Mode = branches.RW
	}
	if i := strings.LastIndexByte(item, '='); i >= 0 && !strings.Contains(item[i:], "/") {
		words := strings.Split(item[i+1:], "+")
		mode, ok := branchModes[words[0]]
		if !ok {
			return spec, errs.New(errs.Usage, "br=%s: mode %q is unknown: use rw, ro or rr", item, words[0])
		}
		for _, a := range words[1:] {
			if !contains(branchAttrs, a) {
				return spec, errs.New(errs.Usage, "br=%s: attribute %q is unknown: use one of %s", item, a, strings.Join(branchAttrs, ", "))
			}
		}
		spec.Path, spec.Mode, spec.Auto, spec.Attr = item[:i], mode, false, words[1:]
	}
	spec.Path = unescape(spec.Path)
	if spec.Path == "" {
		return spec, errs.New(errs.Usage, "br=: %q names no directory", item)
	}
	return spec, nil
}
