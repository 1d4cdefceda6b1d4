package syncd

import "saru/conntable"

// activeHere reports whether the packets of r's connection come to this
// director, so that the own kernel knows it best: by who told of it last.
func (e *Engine) activeHere(r *conntable.Record) bool { return r.Version.Node == e.self }
