// Package guest boots a Debian kernel with IPVS in QEMU and runs one program
// in it as root, for machines whose own kernel has no IPVS.
//
// The guest sees the machine's whole file system, read-only below a RAM
// overlay, so any program of the machine runs in it by its usual path, and
// nothing that it writes reaches the machine, except below the one folder that
// Config.Out names.
//
// What must hold:
//
//   - The kernel is downloaded as a package and unpacked into a cache folder;
//     it is never installed on the machine.
//   - Output is passed on as it is written, and the program's exit status is
//     the run's. A guest that did not boot, panicked or ran out of time is an
//     *Error, never mistaken for the program's own failure.
//   - No QEMU outlives the context of its run, nor the process that started it.
//
// # The channel
//
// Host and guest speak over one virtio serial port, in frames:
//
//	 0        1                              5
//	+--------+------------------------------+----------------
//	| kind   | length of the payload, BE 32 | payload …
//	+--------+------------------------------+----------------
//
// The guest says hello; the host answers with the job as JSON; then come the
// program's output ('1' standard output, '2' standard error) and at last its
// exit status ('x'). The host may send signals for the program ('s') meanwhile.
package guest
