namespace BlockServer.Core.Api;

// Streams (docs/stream.md) in the admin API:
//
//   GET    /v1/volumes/{name}/snapshots/{snapshot}/stream?base=..&compress=..&cursor=..   the stream, chunked
//   POST   /v1/volumes/{name}/stream?storeId=..&keep=..&resume=..                         takes one -> 201 VolumeInfo
//                                                                     (check=true: its header only, nothing is changed)
//   GET    /v1/volumes/{name}/import                                                      ImportInfo, or why the last one failed
//   DELETE /v1/volumes/{name}/import                                                      204, an interrupted one is given up

/// <summary>The media type of a stream of the API.</summary>
public static class StreamMedia
{
    /// <summary>As in Content-Type.</summary>
    public const string Type = "application/vnd.blockd.stream";

    /// <summary>What comes back of an export into a file that was handed over: the stream's header, then lines that say how far it is.</summary>
    public const string ReportType = "application/vnd.blockd.stream-report";
}

/// <summary>What pfcli says of an export.</summary>
/// <param name="Volume">Name of the volume.</param>
/// <param name="Snapshot">Name of the snapshot that was exported.</param>
/// <param name="Base">Name of the snapshot that it builds on, or null.</param>
/// <param name="Format">raw or stream.</param>
/// <param name="File">Where it went; <c>-</c> is standard output.</param>
/// <param name="SizeBytes">Size of the content.</param>
/// <param name="DataBytes">How much of it is data.</param>
/// <param name="SentBytes">What came over the connection.</param>
public sealed record ExportSummary(
    string Volume, string Snapshot, string? Base, string Format, string File, ulong SizeBytes, ulong DataBytes, ulong SentBytes);

/// <summary>A stream that comes into a volume, or that was interrupted and can be continued.</summary>
/// <param name="StreamId">Identity of the stream.</param>
/// <param name="Base">UUID of the snapshot that it builds on, or null.</param>
/// <param name="Target">UUID of the snapshot that it brings, or null.</param>
/// <param name="Cursor">Where it stands durably: the rest is sent from here (docs/stream.md).</param>
/// <param name="OffsetBytes">How much of the content that is.</param>
/// <param name="Active">The volume cannot be attached until the import has ended. False: it is as before the import.</param>
public sealed record ImportInfo(Guid StreamId, Guid? Base, Guid? Target, string Cursor, ulong OffsetBytes, bool Active);
