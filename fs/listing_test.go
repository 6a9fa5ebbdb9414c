package fs

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/layerfs/layerfs/branches"
)

func named(names ...string) (out []branches.Entry) {
	for _, n := range names {
		out = append(out, branches.Entry{Name: n})
	}
	return out
}

func TestListingKeepsCookies(t *testing.T) {
	l := newListing(named("a", "b", "c"))
	half := after(l.entries, cookieFirst) // a reader has had "a"
	require.Len(t, half, 2)
	l.renew(named("new", "c", "a")) // another order, "b" has gone
	rest := after(l.entries, cookieFirst)
	require.Equal(t, []string{"c", "new"}, []string{rest[0].Name, rest[1].Name})
	require.EqualValues(t, cookieFirst+2, rest[0].cookie)
	l.renew(named("b"))
	require.EqualValues(t, cookieFirst+4, l.entries[0].cookie, "a name that comes again is a new one")
	require.Empty(t, after(l.entries, cookieFirst+4))
}

func TestListingsAreBounded(t *testing.T) {
	var l listings
	var nodes []*node
	for i := range 5 {
		n := &node{dir: &dirNode{list: newListing(named(fmt.Sprint(i)))}}
		nodes = append(nodes, n)
		l.use(n, maxListed/4)
		l.use(n, maxListed/4) // again costs nothing
	}
	require.Nil(t, nodes[0].dir.list, "the one that was not read for the longest time goes")
	require.NotNil(t, nodes[1].dir.list)
	l.use(nodes[1], 2*maxListed)
	require.NotNil(t, nodes[1].dir.list, "one that is being read stays, however large")
	require.Nil(t, nodes[4].dir.list)
	l.forget(nodes[1])
	require.Zero(t, l.total)
	require.Empty(t, l.kept)
}
