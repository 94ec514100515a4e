package bench

import (
	"context"

	"github.com/l4fwd/l4fwd/dataplane"
)

// stepper feeds frames a window at a time: it hands a window of at most a
// burst to the ports and lets all workers take turns until nothing moves. So
// it can learn from what was sent before it feeds what depends on it, and with
// several workers the order of everything is the same each time.
//
// A window ends early where the next frame must come after one in it: a packet after
// one of its flow that goes the other way, for it may be the answer to it, and on a wire
// there is none to what has not been forwarded yet; and, with several workers, whose
// queues have no common order, any packet after another of its flow.
type stepper struct {
	m        *meter
	learning bool
	number   uint32 // of the window, from 1
	size     int
	lists    [][][]byte // the window's frames by queue
	ids      [][]int32  // their places in the capture
	origin   []int32    // by chunk: the place of the frame it received last
	busy     []int64    // nanoseconds of each worker
	packets  uint64
	time     int64 // of the window's last frame
	polled   int64 // of the window before

	taught  [dataplane.BurstSize]lesson
	lessons int
	held    map[int32][]int32 // by flow
	nHeld   uint64
}

// lesson is the head of a frame that a packet which teaches became.
type lesson struct {
	frame int32
	n     int
	out   [lessonLen]byte
}

// lessonLen holds all headers of any packet: Ethernet with a tag, IPv6, TCP
// with options, or as many extension headers.
const lessonLen = 256

func newStepper(m *meter) *stepper {
	s := &stepper{
		m: m, learning: true, number: 1, time: m.time, polled: m.time,
		lists: make([][][]byte, len(m.r.ports)), ids: make([][]int32, len(m.r.ports)),
		origin: make([]int32, len(m.r.umem.used)/m.r.chunk),
		busy:   make([]int64, len(m.r.ports)),
		held:   map[int32][]int32{},
	}
	for q, p := range m.r.ports {
		s.lists[q] = make([][]byte, 0, dataplane.BurstSize)
		s.ids[q] = make([]int32, 0, dataplane.BurstSize)
		p.OnReceive = func(i int, f []byte) { s.origin[m.r.chunkOf(f)] = s.ids[q][i] }
		p.OnSend = s.sent
	}
	return s
}

// detach leaves the ports to the output alone.
func (s *stepper) detach() {
	for _, p := range s.m.r.ports {
		p.OnReceive, p.OnSend = nil, nil
		if s.m.out != nil {
			p.OnSend = s.m.out.collect
		}
	}
}

// sent sees a frame leave.
func (s *stepper) sent(f []byte) {
	i := s.origin[s.m.r.chunkOf(f)]
	if s.m.out != nil {
		s.m.out.collectFor(i, f)
	}
	if s.learning && s.m.a.frames[i].mark&markTeaches != 0 && s.lessons < len(s.taught) {
		l := &s.taught[s.lessons]
		l.frame, l.n = i, copy(l.out[:], f)
		s.lessons++
	}
}

// feed feeds frame i of the capture in its turn, or holds it back.
func (s *stepper) feed(i int32, offset int64) {
	info := &s.m.a.frames[i]
	if info.flow >= 0 {
		w := &s.m.a.flows[info.flow]
		if w.window == s.number && (info.role != w.role || len(s.lists) > 1) {
			s.step()
		}
		if s.learning && info.role == roleReply {
			if !w.learned {
				s.held[info.flow] = append(s.held[info.flow], i)
				s.nHeld++
				return
			}
			w.complete(s.m.c.Frames[i])
		}
		w.window, w.role = s.number, info.role
	}
	s.add(i, offset)
}

// add puts a frame into the window.
func (s *stepper) add(i int32, offset int64) {
	f := s.m.c.Frames[i]
	q := s.m.r.queue(f)
	s.lists[q] = append(s.lists[q], f)
	s.ids[q] = append(s.ids[q], i)
	s.time = max(s.time, offset+s.m.c.Times[i])
	s.m.bytes += uint64(len(f))
	s.packets++
	if s.learning {
		s.m.order = append(s.m.order, i)
	}
	if s.size++; s.size == dataplane.BurstSize {
		s.step()
	}
}

// step lets the workers have the window, and learns from what they sent.
func (s *stepper) step() {
	if s.size == 0 {
		return
	}
	for _, w := range s.m.r.dp.Workers {
		idle(w, s.polled, s.time)
	}
	s.polled = s.time
	for q, p := range s.m.r.ports {
		p.Feed(s.lists[q], 1)
	}
	s.poll()
	s.m.out.write(s.time)
	for q := range s.lists {
		s.lists[q], s.ids[q] = s.lists[q][:0], s.ids[q][:0]
	}
	s.size = 0
	s.number++
	s.learn()
}

// poll runs the workers in turn until all is at rest, each by its own time.
func (s *stepper) poll() {
	for moving := true; moving; {
		moving = false
		for i, w := range s.m.r.dp.Workers {
			from := s.m.now()
			n := w.Poll(s.time)
			s.busy[i] += s.m.now() - from
			moving = moving || n > 0 && len(s.lists) > 1 || !s.m.r.ports[i].Idle()
		}
	}
}

// learn takes in the window's lessons and feeds the replies that waited for
// them.
func (s *stepper) learn() {
	var released []int32
	for k := range s.lessons {
		l := &s.taught[k]
		f := s.m.a.frames[l.frame].flow
		w := &s.m.a.flows[f]
		w.learn(s.m.c.Frames[l.frame], l.out[:l.n], &s.m.a.spec.Services[w.service])
		if held := s.held[f]; held != nil && s.m.a.flows[f].learned {
			released = append(released, held...)
			delete(s.held, f)
		}
	}
	s.lessons = 0
	for _, i := range released {
		s.feed(i, base)
	}
}

// firstLoop opens the flows and has the replies completed.
func (m *meter) firstLoop(ctx context.Context) error {
	s := newStepper(m)
	defer s.detach()
	m.order = make([]int32, 0, len(m.c.Frames))
	if !m.several() {
		m.watch()
	}
	before := allocated()
	for i := range m.c.Frames {
		if m.several() && m.a.frames[i].mark&markClosing != 0 {
			continue
		}
		s.feed(int32(i), base)
		if i%(1<<16) == 0 {
			if err := m.tell(ctx, m.firstShare()*float64(i)/float64(len(m.c.Frames))); err != nil {
				return err
			}
		}
	}
	s.step()
	m.allocs, m.allocsOver = allocated()-before, s.packets
	m.heldBack = s.nHeld
	s.learning = false
	for i := range m.c.Frames { // in vain
		if f := m.a.frames[i].flow; f >= 0 && len(s.held[f]) > 0 && s.held[f][0] == int32(i) {
			s.held[f] = s.held[f][1:]
			m.unmatched++
			s.add(int32(i), base)
			m.order = append(m.order, int32(i))
		}
	}
	s.step()
	m.account(0, s)
	m.loops = 1
	return nil
}

// account books what a stepper did.
func (m *meter) account(part int, s *stepper) {
	m.part[part].packets += s.packets
	var longest int64
	for _, n := range s.busy {
		longest = max(longest, n)
	}
	m.part[part].nanos += longest
	m.time = s.time
}

// lockstep is laterLoops for several workers whose output must not depend on
// the scheduling of threads.
func (m *meter) lockstep(ctx context.Context) error {
	s := newStepper(m)
	defer s.detach()
	s.learning = false
	s.number = ^uint32(0) / 2 // a window no flow has been in
	for m.more() {
		offset := base + int64(m.loops)*m.c.span()
		for n, i := range m.order {
			if m.a.frames[i].mark&(markOpening|markClosing) == 0 {
				s.feed(i, offset)
			}
			if n%(1<<16) == 0 {
				if err := m.tell(ctx, m.done()); err != nil {
					return err
				}
			}
		}
		m.loops++
	}
	s.step()
	m.account(1, s)
	return nil
}
