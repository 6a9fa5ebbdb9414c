package main

import (
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/tests/bench/work"
)

func median(d []time.Duration) time.Duration {
	d = slices.Clone(d)
	slices.Sort(d)
	return d[len(d)/2]
}

// ratios are those of all peers to kernel overlay, by row and peer.
type ratios map[string]map[string]float64

func ratiosOf(results map[string]map[string][]time.Duration) ratios {
	out := ratios{}
	for row, times := range results {
		out[row] = map[string]float64{}
		for peer, d := range times {
			out[row][peer] = median(d).Seconds() / median(times["overlay"]).Seconds()
		}
	}
	return out
}

// report prints the ratios as a table, and what misses its target or is slower than the
// peer beside it.
func report(there []peer, results map[string]map[string][]time.Duration) {
	all := ratiosOf(results)
	fmt.Printf("\nRatios to kernel overlay (seconds), medians of %d; kernel %s. Below 1 is faster.\n\n", *rounds, kernelRelease())
	head, rule := "| work | overlay (s) |", "|---|---|"
	for _, p := range there {
		if p.name != "overlay" {
			head, rule = head+" "+p.name+" |", rule+"---|"
		}
	}
	fmt.Println(head + " target |\n" + rule + "---|")
	for _, r := range rows() {
		line := fmt.Sprintf("| %s | %.4f |", r.name, median(results[r.name]["overlay"]).Seconds())
		for _, p := range there {
			if p.name == "overlay" {
				continue
			}
			if v, ok := all[r.name][p.name]; ok {
				line += fmt.Sprintf(" %.2f |", v)
			} else {
				line += " |"
			}
		}
		fmt.Println(line + targetText(r.target) + " |")
	}
	fmt.Println()
	for _, m := range misses(all) {
		fmt.Println(m)
	}
	if *chart != "" {
		work.Check(os.WriteFile(*chart, []byte(draw(all)), 0644))
	}
}

func targetText(target float64) string {
	if target == 0 {
		return ""
	}
	return fmt.Sprintf(" %g", target)
}

// misses says what is not as fast as it should be.
func misses(all ratios) (out []string) {
	for _, r := range rows() {
		got := all[r.name]
		if v, ok := got["layerfs"]; ok && r.target > 0 && v > r.target {
			out = append(out, fmt.Sprintf("missed: %s: %.2f, target %g", r.name, v, r.target))
		}
		for _, who := range []string{"", ", rootless"} {
			us, ok1 := got["layerfs"+who]
			them, ok2 := got["fuse-overlayfs"+who]
			if ok1 && ok2 && us > them {
				out = append(out, fmt.Sprintf("slower than fuse-overlayfs%s: %s: %.2f against %.2f", who, r.name, us, them))
			}
		}
	}
	return out
}

func kernelRelease() string {
	var uts unix.Utsname
	work.Check(unix.Uname(&uts))
	return unix.ByteSliceToString(uts.Release[:])
}

// drawn are the peers in the chart, and their colours.
var drawn = []struct{ peer, colour string }{
	{"layerfs", "#1b6ca8"}, {"fuse-overlayfs", "#e08e45"}, {"unionfs-fuse", "#b9b9b9"},
}

// draw draws the ratios as bars on a logarithmic scale, kernel overlay being a line.
func draw(all ratios) string {
	const left, width, bar, gap, top = 230.0, 620.0, 9.0, 12.0, 50.0
	const decades = 4.0 // 0.01 to 100
	x := func(v float64) float64 { return left + width*(math.Log10(min(max(v, 0.01), 100))+2)/decades }
	var b strings.Builder
	height := top + float64(len(rows()))*(bar*float64(len(drawn))+gap) + 30
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" font-family="sans-serif" font-size="12">`+"\n", left+width+70, height)
	fmt.Fprintf(&b, `<rect width="100%%" height="100%%" fill="white"/>`+"\n")
	for i, d := range drawn {
		fmt.Fprintf(&b, `<rect x="%.0f" y="12" width="12" height="12" fill="%s"/><text x="%.0f" y="22">%s</text>`+"\n", left+float64(i)*150, d.colour, left+18+float64(i)*150, d.peer)
	}
	for _, v := range []float64{0.01, 0.1, 1, 10, 100} {
		stroke := "#dddddd"
		if v == 1 {
			stroke = "#333333"
		}
		fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%.0f" y2="%.0f" stroke="%s"/><text x="%.1f" y="%.0f" text-anchor="middle" fill="#555555">%g</text>`+"\n", x(v), x(v), top-8, height-26, stroke, x(v), height-10, v)
	}
	fmt.Fprintf(&b, `<text x="%.1f" y="%.0f" text-anchor="middle" fill="#333333">kernel overlay = 1, shorter is faster</text>`+"\n", x(1), top-14)
	y := top
	for _, r := range rows() {
		fmt.Fprintf(&b, `<text x="%.0f" y="%.1f" text-anchor="end">%s</text>`+"\n", left-8, y+bar*float64(len(drawn))/2+4, r.name)
		for _, d := range drawn {
			if v, ok := all[r.name][d.peer]; ok {
				fmt.Fprintf(&b, `<rect x="%.1f" y="%.1f" width="%.1f" height="%.0f" fill="%s"/><text x="%.1f" y="%.1f" font-size="9">%.2f</text>`+"\n", left, y, x(v)-left, bar-1, d.colour, x(v)+4, y+bar-1.5, v)
			}
			y += bar
		}
		y += gap
	}
	b.WriteString("</svg>\n")
	return b.String()
}
