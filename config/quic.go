package config

import (
	"fmt"
	"math"
)

// quic checks how a service routes by connection ID, and what its backends are called
// there.
func (v *validator) quic(path string, s Service) {
	q, plain := &s.QUIC, defaultService().QUIC
	plain.Layout = q.Layout
	switch {
	case q.Layout == 0 || v.told[path+".quic.layout"]:
		return
	case q.Layout != QUICNone && s.Protocol == TCP:
		v.fail(path+".quic", "QUIC runs over UDP; a tcp service cannot have it")
	case q.Layout != QUICNone && s.Mode == SNAT:
		v.fail(path+".quic", "snat keeps no flows and chooses no backends: it cannot have quic")
	case q.Layout != QUICNone && s.OnePacket:
		v.fail(path+".quic", "one_packet gives every datagram a backend of its own; quic keeps a connection with one")
	case q.Layout != QUICLB && *q != plain:
		v.fail(path+".quic", "config_id, server_id_length and what they were are for the layout quic-lb, not for %v", q.Layout)
	case v.told[path+".quic.config_id"] || v.told[path+".quic.former_config_id"]:
	case q.FormerConfigID == q.ConfigID:
		v.fail(path+".quic", "the former configuration %d is the present one", q.ConfigID)
	case q.FormerConfigID < 0 && q.FormerIDLength != plain.FormerIDLength:
		v.fail(path+".quic", "former_server_id_length is that of former_config_id, of which there is none")
	}
	most := uint64(math.MaxUint32) // katran's longest has four bytes
	if q.Layout == QUICLB {
		most = math.MaxUint64 >> (64 - 8*q.IDLength)
	}
	first := map[uint64]int{}
	for i, b := range s.Backends {
		sub := fmt.Sprintf("%s.backends[%d].server_id", path, i)
		j, again := first[b.ServerID]
		switch {
		case q.Layout == QUICNone || q.Layout == QUICDPVS:
			if b.ServerID != 0 {
				v.fail(sub, "server_id is for quic with the layouts katran and quic-lb; it is %v", q.Layout)
			}
		case b.ServerID == 0 && v.told[sub]:
		case b.ServerID == 0:
			v.fail(sub, "the layout %v needs one for each backend, from 1 to %d", q.Layout, most)
		case b.ServerID > most:
			v.fail(sub, "%d does not fit; expected at most %d", b.ServerID, most)
		case again:
			v.fail(sub, "%d is already that of %s", b.ServerID, v.c.calledBackend(path, j))
		default:
			first[b.ServerID] = i
		}
	}
}
