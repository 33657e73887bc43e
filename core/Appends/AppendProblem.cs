namespace BlockServer.Core;

/// <summary>Why an append was refused, in the words of the admin API: by HTTP and by a stream alike.</summary>
/// <param name="Status">The HTTP status.</param>
/// <param name="Code">The stable code of a problem.</param>
/// <param name="Detail">A sentence for an operator.</param>
/// <param name="Field">What of the request is at fault, or null.</param>
public sealed record AppendProblem(int Status, string Code, string Detail, string? Field = null)
{
    private static readonly AppendProblem s_away = new(503, "disk-unavailable", "the volume's disk does not serve; see pfcli list_disk, then repeat");

    /// <summary>The problem of a code; of one that is not known, that the append may be tried again.</summary>
    public static AppendProblem Of(AppendCode code) => code switch
    {
        AppendCode.Invalid => new(400, "invalid-query", "an append has a client, a sequence, and 1 byte to 32 MiB", "lengths"),
        AppendCode.NotFound => new(404, "no-such-volume", "the volume was deleted meanwhile"),
        AppendCode.Sealed => new(409, "volume-is-sealed", "the volume is sealed and takes nothing more"),
        AppendCode.Full => new(507, "volume-full", "the bytes do not fit under the volume's maximum size; raise it with pfcli resize_volume"),
        AppendCode.StaleSequence => new(409, "sequence-too-old", "only the last 16 appends of a client are remembered: whether this one landed cannot be told; read the volume", "sequence"),
        AppendCode.UnknownClient => new(409, "client-unknown", "this client was forgotten, or its appends were undone by a rollback: read the volume, and go on with a new client identity, from sequence 1", "client"),
        AppendCode.Differs => new(409, "append-differs", "another append of a different length has landed under this number", "sequence"),
        AppendCode.NoSpace => new(507, "no-space", "the disk is full; delete something, or add a disk"),
        AppendCode.Damaged => new(503, "unreadable", "the last block of the volume cannot be read; pfcli scrub_volume says more"),
        AppendCode.BadFrame => new(400, "bad-frame", "what came over the append stream is no frame of " + AppendWire.Protocol),
        AppendCode.DamagedOnTheWay => new(400, "append-damaged", "the bytes of an append were changed on their way; send it again"),
        AppendCode.WrongVolume => new(404, "no-such-volume", "the frame names another volume than the one of its stream"),
        AppendCode.TooSlow => new(408, "too-slow", "the rest of a frame came too slowly"),
        _ => s_away,
    };
}
