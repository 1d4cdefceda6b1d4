// Package traffic is what a client does in the lab: long downloads whose
// bytes are checked, quiet connections that exchange a line now and then, and
// short requests.
//
// What must hold: a flow counts as lost for any reason for which a user would
// notice it (reset, end before its time, silence for longer than the limit,
// wrong bytes), and every loss keeps its reason. A flow that this package
// closed itself is never a loss.
package traffic
