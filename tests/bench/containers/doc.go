// Command containers measures what containers cost with each driver of a store: a
// thousand that are created, mounted, written to, unmounted and removed, whether that
// costs more when there are many, and ten that read the same large file.
package main
