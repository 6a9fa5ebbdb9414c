package fs

import (
	"sync"
	"sync/atomic"
	"time"
)

// gate lets requests in, any number at a time, or one change of the branches
// alone. What is inside must not wait for something that has not entered yet.
// The zero value is open.
type gate struct {
	// inside counts what is inside; while the gate is shut, gateShut less.
	inside atomic.Int64
	// entered counts those who came in.
	entered atomic.Int64
	empty   chan struct{} // a word that nothing is inside any more. Immutable once shut.

	shutMu sync.Mutex    // held while the gate is shut
	mu     sync.Mutex    // a leaf
	opened chan struct{} // closed when the gate opens again. Protected by mu.
}

const gateShut = 1 << 40

// Enter waits while the gate is shut. Leave must be called in the end.
func (g *gate) Enter() {
	g.entered.Add(1)
	for g.inside.Add(1) <= 0 {
		g.mu.Lock()
		opened := g.opened
		g.mu.Unlock()
		g.Leave()
		<-opened
	}
}

// Leave ends what Enter has begun.
func (g *gate) Leave() {
	if g.inside.Add(-1) == -gateShut {
		select { // shut has made the channel before anybody can see the gate shut
		case g.empty <- struct{}{}:
		default:
		}
	}
}

// shut keeps everybody out and waits until nothing is inside, for wait at most.
// If that was too short it is open again.
func (g *gate) shut(wait time.Duration) bool {
	g.shutMu.Lock()
	g.mu.Lock()
	g.opened = make(chan struct{})
	if g.empty == nil {
		g.empty = make(chan struct{}, 1)
	}
	g.mu.Unlock()
	timeout := time.After(wait)
	for left := g.inside.Add(-gateShut); left != -gateShut; left = g.inside.Load() {
		select {
		case <-g.empty:
		case <-timeout:
			g.open()
			return false
		}
	}
	return true
}

// open ends what shut has begun.
func (g *gate) open() {
	g.inside.Add(gateShut)
	close(g.opened)
	g.shutMu.Unlock()
}
