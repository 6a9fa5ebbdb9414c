package main

import (
	"fmt"

	"github.com/layerfs/layerfs/branches/convert"
	"github.com/layerfs/layerfs/branches/offline"
	"github.com/layerfs/layerfs/internal/errs"
	"github.com/layerfs/layerfs/whiteout"
)

func init() {
	commandHelp["convert"] = `Usage: layerfs convert --to aufs|overlay|xattr [--namespace trusted|user] [--workdir DIR] [--json] UPPERDIR

Rewrites the whiteouts, opaque marks and redirects of an upper in another
dialect, in place. What the union shows stays the same at every moment; an
interrupted conversion is completed by running it again, and until then a
writable mount of the upper is refused.

  --namespace NS  where extended attributes lie from now on: trusted (root's) or
                  user; without, where they are
  --workdir DIR   the workdir= of the upper, so that it is locked; that of a
                  br= branch is found

Example:
  layerfs convert --to overlay --workdir /work /changes
`
}

func cmdConvert(args []string) error {
	c := newCommand("convert", true)
	to := c.String("to", "", "")
	namespace := c.String("namespace", "", "")
	workDir := c.String("workdir", "", "")
	if done, err := c.parse(args, 1, 1); done || err != nil {
		return err
	}
	if *to == "" {
		return errs.New(errs.Usage, "convert: --to is missing: aufs, overlay or xattr")
	}
	dialect, err := whiteout.ParseDialect(*to)
	if err != nil {
		return errs.New(errs.Usage, "convert: --to: %w", err)
	}
	ns, err := parseNamespace(*namespace)
	if err != nil {
		return err
	}
	u, err := offline.OpenAlone(c.Arg(0), *workDir)
	if err != nil {
		return err
	}
	defer u.Close()
	r, err := convert.Run(u, dialect, ns)
	if err != nil {
		return err
	}
	if c.json {
		return printJSON(r)
	}
	_, err = fmt.Printf("%s: %s, %d changes in %d directories\n", u.Path, converted(r), r.Changes, r.Directories)
	return err
}

func parseNamespace(name string) (whiteout.Namespace, error) {
	switch name {
	case "":
		return "", nil
	case "trusted":
		return whiteout.Trusted, nil
	case "user":
		return whiteout.User, nil
	}
	return "", errs.New(errs.Usage, "convert: --namespace %q is not known: trusted or user", name)
}

func converted(r *convert.Result) string {
	switch {
	case r.Resumed:
		return fmt.Sprintf("interrupted conversion completed: %s", r.To)
	case r.From == "":
		return fmt.Sprintf("converted to %s", r.To)
	case r.From == r.To:
		return fmt.Sprintf("was in %s already", r.To)
	}
	return fmt.Sprintf("converted from %s to %s", r.From, r.To)
}
