"""The report page: charts as inline SVG, media as data URIs, one file without scripts."""
