package fs

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/layerfs/layerfs/branches"
	"github.com/layerfs/layerfs/internal/sys"
)

// slowRead is how long a read takes that has waited for the disk.
const slowRead = 300 * time.Microsecond

// hasRead notes how long a read from a branch took.
func (a *ahead) hasRead(took time.Duration) {
	if took > slowRead {
		a.slow.Store(time.Now().Add(walkTime / 4).UnixNano())
	}
}

const (
	// filesAhead is how many files are read ahead of one who reads the files of a
	// directory one after the other.
	filesAhead = 24
	// bytesAhead is how much of each.
	bytesAhead = 256 << 10
)

// reads notes that the file n is being read from its beginning.
func (a *ahead) reads(n *node) {
	if time.Now().UnixNano() > a.slow.Load() {
		return
	}
	n.mu.Lock()
	if len(n.names) == 0 {
		n.mu.Unlock()
		return
	}
	p := n.names[0]
	n.mu.Unlock()
	if files := p.dir.dir.comesNext(p.name); len(files) > 0 {
		a.mu.Lock()
		a.walked = time.Now()
		a.mu.Unlock()
		a.push(aheadJob{p.dir.dir.tree, files})
	}
}

// comesNext returns the files that one who reads the files of d in its order, and is
// at name now, will read soon; none that it has returned before.
func (d *dirNode) comesNext(name string) (files []string) {
	d.listMu.Lock()
	defer d.listMu.Unlock()
	if d.list == nil {
		return nil
	}
	list := d.list.entries
	at := -1
	for i := d.fileAt; i < min(len(list), d.fileAt+maxAhead/16); i++ {
		if list[i].Name == name {
			at = i
			break
		}
	}
	if at < 0 {
		d.fileAt, d.filesTo = 0, 0 // he begins anew, or goes another way
		return nil
	}
	d.fileAt = at + 1
	if d.filesTo > at+filesAhead/2 {
		return nil
	}
	i := max(d.filesTo, at+1)
	for ; i < len(list) && len(files) < filesAhead; i++ {
		if list[i].Type == unix.DT_REG {
			files = append(files, list[i].Name)
		}
	}
	d.filesTo = i
	return files
}

// readFiles has the disk read the files of a job.
func (a *ahead) readFiles(job aheadJob) {
	for _, name := range job.files {
		res, err := a.fs.stack.Lookup(job.tree, name)
		if err != nil || res.Kind != branches.File || !res.Stat.IsRegular() || res.Stat.Size == 0 {
			continue
		}
		at, err := acquire(job.tree, res.Where, name)
		if err != nil {
			continue
		}
		if fd, err := sys.OpenUntouched(at.fd, name, 0); err == nil {
			sys.ReadAhead(fd, 0, min(int64(res.Stat.Size), bytesAhead))
			sys.Close(fd)
		}
		at.release()
	}
}
