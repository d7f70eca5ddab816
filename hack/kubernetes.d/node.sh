# shellcheck shell=bash
node_down() { control_plane_down; }
