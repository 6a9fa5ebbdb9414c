package blockstore

import "container/list"

// cacheNodes bounds the nodes kept in memory beside those of transactions:
// 16 MiB that cover at least 128 GiB of volumes with dense leaves.
const cacheNodes = 8192

// nodeCache keeps the durable nodes used last. The pool's lock protects it.
type nodeCache struct {
	nodes map[uint64]*list.Element
	order *list.List // of *node, the one used last in front
}

func newNodeCache() *nodeCache {
	return &nodeCache{nodes: map[uint64]*list.Element{}, order: list.New()}
}

func (c *nodeCache) get(id uint64) *node {
	e := c.nodes[id]
	if e == nil {
		return nil
	}
	c.order.MoveToFront(e)
	return e.Value.(*node)
}

func (c *nodeCache) add(n *node) {
	if c.nodes[n.id] != nil {
		return
	}
	c.nodes[n.id] = c.order.PushFront(n)
	if len(c.nodes) > cacheNodes {
		last := c.order.Back()
		delete(c.nodes, last.Value.(*node).id)
		c.order.Remove(last)
	}
}

func (c *nodeCache) drop(id uint64) {
	if e := c.nodes[id]; e != nil {
		delete(c.nodes, id)
		c.order.Remove(e)
	}
}
