package syncd

import (
	"bufio"
	"encoding/json"
	"net/http"

	"saru/internal/control"
)

// Handler serves the control socket:
//
//	GET  /status   Status
//	GET  /conns    Conn after Conn, one a line; ?proto= ?client= ?virtual= ?dest=
//	POST /resync   pulls everything again; Resynced when that is done
func (e *Engine) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, _ *http.Request) { control.JSON(w, e.Status()) })
	mux.HandleFunc("GET /conns", e.serveConns)
	mux.HandleFunc("POST /resync", func(w http.ResponseWriter, r *http.Request) {
		n, err := e.Resync(r.Context())
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		control.JSON(w, Resynced{n, e.table.Len()})
	})
	return mux
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
	w.Header().Set("Content-Type", "application/jsonl")
	bw := bufio.NewWriterSize(w, 64<<10)
	enc := json.NewEncoder(bw)
	e.Conns(pick, func(c Conn) bool { return enc.Encode(c) == nil })
	bw.Flush()
}
