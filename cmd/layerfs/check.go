package main

import (
	"fmt"

	"github.com/layerfs/layerfs/branches/check"
	"github.com/layerfs/layerfs/branches/offline"
	"github.com/layerfs/layerfs/internal/errs"
)

func init() {
	commandHelp["check"] = `Usage: layerfs check [--repair] [--rebind] [--json] [--workdir DIR] [--lower DIR]...
                     [--pool POOL] UPPERDIR

Examines a branch that is not mounted: whiteouts beside what they hide,
leftovers of a crash, redirects that lead nowhere, the records of hard links,
files that were copied up by blocks and their devices.
One line per finding, PATH: what is wrong: what a repair does. Exit code 6 when
something is wrong, 0 when nothing is or all of it was repaired.

  --repair        mend what can be mended; nothing of a user's is removed
  --workdir DIR   the workdir= of the upper; that of a br= branch is found
  --lower DIR     a branch below, top first; all of them: without, redirects and
                  needless whiteouts are not checked
  --rebind        tell the pool where the lower files of such files are now
  --pool POOL     the shared pool, if the upper was mounted with pool=

Example:
  layerfs check --workdir /work --lower /image /changes
  layerfs check --repair --workdir /work /changes
`
}

func cmdCheck(args []string) error {
	c := newCommand("check", true)
	repair := c.Bool("repair", false, "")
	workDir := c.String("workdir", "", "")
	lowers := c.StringArray("lower", nil, "")
	rebind := c.Bool("rebind", false, "")
	pool := c.String("pool", "", "")
	if done, err := c.parse(args, 1, 1); done || err != nil {
		return err
	}
	open := offline.Open
	if *rebind && len(*lowers) == 0 {
		return errs.New(errs.Usage, "check: --rebind needs the branches below, with --lower")
	}
	if *repair || *rebind {
		open = offline.OpenAlone
	}
	u, err := open(c.Arg(0), *workDir)
	if err != nil {
		return err
	}
	defer u.Close()
	report, err := check.Run(u, check.Options{Lowers: *lowers, Repair: *repair, Rebind: *rebind, Pools: poolsHere(*pool)})
	if err != nil {
		return err
	}
	if err := printFindings(report, c.json); err != nil {
		return err
	}
	if report.Left > 0 {
		return errs.New(errs.Corrupt, "%s: %s", report.Branch, summary(report))
	}
	return nil
}

func printFindings(r *check.Report, asJSON bool) error {
	if asJSON {
		return printJSON(r)
	}
	for i := range r.Findings {
		fmt.Println(r.Findings[i].String())
	}
	for _, n := range r.Notes {
		fmt.Println("note:", n)
	}
	format := r.Format
	if format == "" {
		format = "no format recorded"
	}
	_, err := fmt.Printf("%s: %s, %d directories, %d names: %s\n", r.Branch, format, r.Directories, r.Names, summary(r))
	return err
}

// summary sums up the findings.
func summary(r *check.Report) string {
	switch all := len(r.Findings); {
	case all == 0:
		return "clean"
	case r.Left == 0:
		return fmt.Sprintf("%d found, all repaired", all)
	case r.Left < all:
		return fmt.Sprintf("%d found, %d repaired, %d left", all, all-r.Left, r.Left)
	default:
		return fmt.Sprintf("%d found", all)
	}
}
