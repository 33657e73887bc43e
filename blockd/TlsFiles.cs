using BlockServer.Io;

namespace BlockServer.Blockd;

/// <summary>
/// The TLS files of the settings: read at start, and again when they have changed. New handshakes of NBD and the API use what was
/// read last; who is connected stays so. Files that cannot be used are warned of, and what was read before holds. Thread-safe.
/// </summary>
internal sealed class TlsFiles : IDisposable
{
    /// <summary>How often it is looked whether they have changed.</summary>
    public static readonly TimeSpan LookEvery = TimeSpan.FromSeconds(5);

    private readonly Settings _settings;
    private readonly Action<string> _warn;
    private readonly Lock _lock = new();
    private readonly Timer _timer;
    private volatile TlsIdentity _current;
    private string _seen;

    private TlsFiles(Settings settings, Action<string> warn)
    {
        (_settings, _warn) = (settings, warn);
        _seen = Stamp(); // before they are read: what changes meanwhile is read again
        _current = Load(settings);
        _timer = new Timer(_ => Look(), null, LookEvery, LookEvery);
    }

    /// <summary>What was read last.</summary>
    public TlsIdentity Current => _current;

    /// <summary>Reads the files; null when the settings name none. Throws as <see cref="TlsIdentity.Load"/>.</summary>
    public static TlsFiles? Open(Settings settings, Action<string> warn) => settings.TlsCert is null ? null : new TlsFiles(settings, warn);

    /// <summary>Reads the files again if they have changed; true when new ones are in use.</summary>
    public bool Look()
    {
        lock (_lock)
        {
            string now = Stamp();
            if (now == _seen) return false;
            // Also when they cannot be used: the same broken files are warned of once.
            _seen = now;
            try
            {
                _current = Load(_settings);
                return true;
            }
            catch (Exception e) when (e is IOException or UnauthorizedAccessException or System.Security.Cryptography.CryptographicException)
            {
                _warn($"the TLS files have changed and cannot be used ({e.Message}); those that were read before hold");
                return false;
            }
        }
    }

    /// <inheritdoc/>
    public void Dispose() => _timer.Dispose();

    private static TlsIdentity Load(Settings s) => TlsIdentity.Load(s.TlsCert!, s.TlsKey!, s.TlsCa, s.TlsClients, SystemClock.Instance);

    // What tells one content from another without reading it; a link's target counts.
    private string Stamp() => string.Join('|', new[] { _settings.TlsCert, _settings.TlsKey, _settings.TlsCa }.OfType<string>().Select(path =>
    {
        var file = new FileInfo(File.ResolveLinkTarget(path, returnFinalTarget: true)?.FullName ?? path);
        return file.Exists ? $"{file.FullName} {file.Length} {file.LastWriteTimeUtc.Ticks}" : "";
    }));
}
