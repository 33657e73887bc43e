namespace BlockServer.Core;

/// <summary>
/// A request that may have to wait until its volume lets it in. Made once and used again by its owner; lives on the volume's
/// loop. <paramref name="admitted"/> is called when its turn has come, never inside <see cref="VolumeAdmission.Enter"/>.
/// </summary>
public sealed class AdmissionWaiter(Action admitted)
{
    /// <summary>It waits.</summary>
    public bool IsWaiting { get; internal set; }

    /// <summary>How long it waited the last time, nanoseconds.</summary>
    public ulong WaitedNanos { get; internal set; }

    internal ulong Bytes { get; set; }

    internal ulong SinceNanos { get; set; }

    internal AdmissionWaiter? Previous { get; set; }

    internal AdmissionWaiter? Next { get; set; }

    internal void Admit() => admitted();
}
