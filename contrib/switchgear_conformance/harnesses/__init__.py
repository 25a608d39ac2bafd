"""The harnesses of Switchgear's own transports, each as an entry point in `switchgear.harnesses`."""
