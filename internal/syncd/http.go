package syncd

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"

	"saru/internal/config"
	"saru/internal/control"
	"saru/syncproto/peer"
)

// Handler serves the control socket:
//
//	GET  /status   Status
//	GET  /conns    Conn after Conn, one a line; ?proto= ?client= ?virtual= ?dest= ?state= ?owner= ?limit=
//	GET  /trace    TraceEvent after TraceEvent, one a line, as they happen; the same filters, ?path=
//	POST /resync   pulls everything again; Resynced when that is done
//	POST /barrier  Barrier; answers when it is reached
//	POST /handshakes  tells the peers of what is half open; Handshakes
func (e *Engine) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { control.JSON(w, e.Status()) })
	mux.HandleFunc("GET /conns", e.serveConns)
	mux.HandleFunc("GET /trace", e.serveTrace)
	mux.HandleFunc("POST /resync", func(w http.ResponseWriter, r *http.Request) {
		n, err := e.Resync(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		control.JSON(w, Resynced{n, e.table.Len()})
	})
	mux.HandleFunc("POST /barrier", e.serveBarrier)
	mux.HandleFunc("POST /handshakes", e.serveHandshakes)
	return mux
}

// A Barrier is what saru waits for before and after it moves a share.
type Barrier struct {
	Peer string `json:"peer"` // its name in syncd
	Back bool   `json:"back"` // all that is known here is delivered at Peer; else all that Peer sent is in the kernel here
}

func (e *Engine) serveBarrier(w http.ResponseWriter, r *http.Request) {
	var b Barrier
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10)).Decode(&b); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	reach := func(ctx context.Context) error { return e.CatchUp(ctx, b.Peer) }
	if b.Back {
		reach = func(ctx context.Context) error { return e.CatchUpBack(ctx, b.Peer) }
	}
	switch err := reach(r.Context()); {
	case errors.Is(err, peer.ErrUnknownPeer):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	default:
		control.JSON(w, struct{}{})
	}
}

// Handshakes is the answer of POST /handshakes.
type Handshakes struct {
	Told int `json:"told"`
}

func (e *Engine) serveHandshakes(w http.ResponseWriter, r *http.Request) {
	// Only who has read the body is told when the client goes. What is in it does
	// not matter.
	_, _ = io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, 4<<10))
	told, err := e.TellHandshakes(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	control.JSON(w, Handshakes{told})
}

// Resynced is the answer of POST /resync.
type Resynced struct {
	Peers       int `json:"peers"`
	Connections int `json:"connections"`
}

func (e *Engine) serveConns(w http.ResponseWriter, r *http.Request) {
	pick, err := ParseFilter(r.URL.Query())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	limit, err := parseLimit(r.URL.Query().Get("limit"))
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/jsonl")
	bw := bufio.NewWriterSize(w, 64<<10)
	enc := json.NewEncoder(bw)
	e.Conns(pick, func(c Conn) bool {
		limit--
		return enc.Encode(c) == nil && limit != 0
	})
	bw.Flush()
}

// parseLimit returns how many at most; 0 is all.
func parseLimit(s string) (int, error) {
	if s == "" {
		return 0, nil
	}
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		return 0, config.Bad("--limit %q: must be a number up to 4294967295, 0 for all", s)
	}
	return int(n), nil
}
