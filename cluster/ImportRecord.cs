namespace BlockServer.Cluster;

/// <summary>A stream that comes into a volume, in the volume's record until it has come.</summary>
/// <param name="StreamId">The stream: only its own rest goes on.</param>
/// <param name="Base">The snapshot that it builds on and that the volume goes back to when it breaks; null: it fills a new volume.</param>
/// <param name="BaseSizeBytes">Size of the base; 0 without one.</param>
/// <param name="Target">The snapshot that is cut when it is whole, or null.</param>
/// <param name="Cursor">How far it has come durably.</param>
/// <param name="IsActive">The volume is neither what it was nor what it will be: nobody may attach it.</param>
/// <param name="IsImage">The new volume becomes an image when the stream has come.</param>
/// <param name="IsUntouched">It was put aside before it had changed anything: no snapshot keeps what has come.</param>
/// <param name="IsGoing">What has come of it is being taken back; nobody goes on with it.</param>
public sealed record ImportRecord(
    Guid StreamId, Guid? Base, ulong BaseSizeBytes, Guid? Target, string Cursor, bool IsActive, bool IsImage = false, bool IsUntouched = false, bool IsGoing = false);
